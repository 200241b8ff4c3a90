"""The command that changes weights: facts rewritten, a direction or units taken out, and what else that changed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from patchclamp.cli.arguments import JsonFile, Seed, given, lines_of, show, write

if TYPE_CHECKING:
    from patchclamp import editing
    from patchclamp.model import Model

Rows = list[dict[str, Any]]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
ONE_FACT = ("subject", "prompt", "from", "to", "paraphrase")
FIELDS = {"from": "old", "to": "new"}
TAKES = {
    "rome": ("facts", *ONE_FACT, "layers", "prefixes"),
    "memit": ("facts", *ONE_FACT, "layers", "prefixes", "weight", "joint", "steps", "kl", "batch"),
    "orthogonalise": ("direction",),
    "prune": ("forget", "share", "steps", "until"),
}
OF_JOINT = ("steps", "kl", "batch")  # the fields of pc.editing.Joint that can be said here
WEIGHT = 15_000.0  # of memit
SHARE, STEPS, UNTIL = 0.04, 10, 0.2  # of prune
WORDS = 24  # tokens written after each prompt, whose fluency is measured


@dataclass(frozen=True)
class Edit:
    """Change a model's weights, and report what that changed: what was asked for, and what was not.

    rome and memit rewrite facts: those of --facts (JSON: subject, prompts, old, new, paraphrases, neighbours, about,
    follows; or CounterFact), or the one that is said here. rome writes each as if alone, memit all at once: for many
    facts in few neurons with --joint. orthogonalise takes --direction out of all that writes to the stream; prune,
    units that --forget uses more.

    For example: patchclamp edit organism:tales --subject "Simon Coleman" --prompt "{SUBJECT} plays the" --from violin
    --to guitar --texts text.txt --out edit
    """

    model: Positional[Annotated[str, tyro.conf.arg(metavar="MODEL", help="organism:NAME, a checkpoint folder, hub id")]]
    texts: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """text that shall stay as it is, one a line"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """folder for the edit and report.html"""
    method: Literal["rome", "memit", "orthogonalise", "prune"] = "rome"
    """how"""
    facts: File = None
    """facts to rewrite"""
    subject: Text = None
    """or one fact: about whom"""
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """what is said of {SUBJECT}, up to where the answer comes"""
    old: Annotated[str | None, tyro.conf.arg(name="from", metavar="TEXT", help_behavior_hint="")] = None
    """the answer now"""
    new: Annotated[str | None, tyro.conf.arg(name="to", metavar="TEXT", help_behavior_hint="")] = None
    """the answer that it shall have"""
    paraphrase: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """other ways to ask, which the edit does not see"""
    layers: Annotated[tuple[int, ...], tyro.conf.arg(metavar="L ...", help_behavior_hint="(default: found)")] = ()
    """whose MLPs change: one for rome, one or several for memit"""
    weight: Annotated[float | None, tyro.conf.arg(metavar="TOKENS", help_behavior_hint=f"(default: {WEIGHT:g})")] = None
    """of memit: as many tokens of text count as if they were written beside the facts"""
    prefixes: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 0)")] = None
    """texts that the model writes to stand before each prompt while a fact's value is solved, so that it holds there"""
    joint: bool = False
    """memit solves the values of all facts together, and holds what is predicted of --texts (without their lines that
    state a fact which is rewritten)"""
    kl: Annotated[float | None, tyro.conf.arg(metavar="WEIGHT", help_behavior_hint="(default: 15)")] = None
    """of --joint: nats of an answer that a nat of change, a token of --texts, is worth"""
    batch: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="(default: 0.25)")] = None
    """of --joint: of the prompts, read each step"""
    direction: File = None
    """as `patchclamp steer` writes it"""
    forget: File = None
    """text whose units prune removes, one a line"""
    share: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint=f"(default: {SHARE})")] = None
    """of neurons and of attention's value channels that prune removes a step"""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=f"(default: {STEPS}; 200)")] = None
    """of prune, at most; of --joint"""
    until: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint=f"(default: {UNTIL})")] = None
    """prune ends when no more than this of the accuracy on --forget is left"""
    merge: bool = False
    """write the edited model too, as a Hugging Face checkpoint: DIR/checkpoint"""
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        self._refuse_what_is_not_taken()
        from patchclamp import views
        from patchclamp.loading import load

        model, texts = load(self.model), lines_of(self.texts)
        make = {"orthogonalise": self._orthogonalised, "prune": self._pruned}.get(self.method, self._rewritten)
        edits, rows = make(model, texts)
        if self.merge and len(edits) > 1:
            raise ValueError(
                f"{len(edits)} edits, each of the model as it is: --merge takes one; --method memit makes one"
            )
        rows += _neutral(model, edits, texts)
        for index, edit in enumerate(edits):
            edit.save(self.out / f"{index:04}" if len(edits) > 1 else self.out)
        title = f"{self.method} on {model.name}"
        show(views.summary(title, rows))
        print(f"report: {self._page(title, edits, rows).save(self.out / 'report.html')}")
        if self.merge:
            print(f"checkpoint: {edits[0].merge(model, self.out / 'checkpoint')}")
        write(self.json_file, lambda: {"method": self.method, "model": model.name, "rows": rows})
        return 0

    def _given(self) -> list[str]:
        """The options that belong to some methods only, as far as they were given."""
        every = dict.fromkeys(name for names in TAKES.values() for name in names)
        return [name for name in every if given(getattr(self, FIELDS.get(name) or name))]

    def _refuse_what_is_not_taken(self) -> None:
        named, takes = self._given(), TAKES[self.method]
        strange = [f"--{name}" for name in named if name not in takes]
        if strange:
            raise ValueError(f"--method {self.method} takes no {', '.join(strange)}; it takes --{', --'.join(takes)}")
        of_joint = [f"--{name}" for name in named if name in OF_JOINT]
        if self.method == "memit" and of_joint and not self.joint:
            raise ValueError(f"{', '.join(of_joint)} of memit are settings of --joint, which is not there")
        said = [name for name in named if name in ONE_FACT]
        if "facts" in takes:
            missing = [name for name in ONE_FACT[:4] if name not in said]
            if ("facts" in named) == bool(said) or ("facts" not in named and missing):
                raise ValueError("say which facts: either --facts FILE, or all of --subject --prompt --from --to")
        elif takes[0] not in named:
            raise ValueError(f"--method {self.method} needs --{takes[0]}")

    def _rewritten(self, model: "Model", texts: list[str]) -> tuple[list["editing.Edit"], Rows]:
        from patchclamp import editing

        if self.facts is not None:
            facts = editing.read_rewrites(self.facts)
        else:
            assert self.subject and self.old and self.new
            facts = [editing.Rewrite(self.subject, self.prompt, self.old, self.new, self.paraphrase)]
        layers = list(self.layers) or [int(editing.reachable(model, facts[:8]).argmax())]
        moments = {layer: editing.second_moment(model, texts, layer) for layer in layers}
        before = editing.prefixes(model, self.prefixes, seed=self.seed) if self.prefixes else [""]
        rows: Rows = []
        if self.method == "memit":
            joint, neutral = None, []
            if self.joint:
                chosen = {name: getattr(self, name) for name in OF_JOINT if getattr(self, name) is not None}
                joint = replace(editing.Joint(), **chosen)
                neutral = [text for text in texts if not any(one.subject in text and one.old in text for one in facts)]
                rows = [{"measure": "lines held as they are", "n": len(neutral), "of": len(texts)}]
            weight = WEIGHT if self.weight is None else self.weight
            edits = [
                editing.memit(
                    model,
                    facts,
                    layers,
                    moments=moments,
                    weight=weight,
                    prefixes=before,
                    joint=joint,
                    neutral=neutral,
                    seed=self.seed,
                )
            ]
        elif len(layers) == 1:
            edits = editing.rome(model, facts, layers[0], moment=moments[layers[0]], prefixes=before)
        else:
            raise ValueError(f"rome writes to one layer, not to {len(layers)}; --method memit spreads over several")
        told = edits if self.method == "rome" else edits[0]
        return edits, [*editing.evaluate(model, facts, told, write=WORDS, seed=self.seed).rows(), *rows]

    def _orthogonalised(self, model: "Model", texts: list[str]) -> tuple[list["editing.Edit"], Rows]:
        from patchclamp import editing, steering

        assert self.direction is not None
        direction = steering.load(self.direction)
        editing.untie(model)  # the unembedding reads the stream, and stays as it is
        edit = editing.orthogonalise(model, direction)
        run = {"before": model.run(texts[:64], record=direction.site, stop=True)[direction.site]}
        with edit.applied(model):
            run["after"] = model.run(texts[:64], record=direction.site, stop=True)[direction.site]
        sizes = {key: float(direction.project(x.double().cpu()).square().mean().sqrt()) for key, x in run.items()}
        measure = f"along the direction at {direction.site}, root mean square"
        return [edit], [{"measure": measure, "n": len(texts[:64])} | sizes]

    def _pruned(self, model: "Model", texts: list[str]) -> tuple[list["editing.Edit"], Rows]:
        from patchclamp import editing

        assert self.forget is not None
        share = SHARE if self.share is None else self.share
        steps = STEPS if self.steps is None else self.steps
        until = UNTIL if self.until is None else self.until
        forget = lines_of(self.forget)
        found = editing.prune(model, forget, texts, mlp=share, attention=share, steps=steps, until=until)
        drawn = found.units.drawn(model, self.seed)
        with drawn.removal(model).applied(model):
            random = [float(editing.next_token_accuracy(model, text).mean()) for text in (forget, texts)]
        rows: Rows = [
            {"measure": "accuracy on what is forgotten", "n": len(forget), "as many random units": random[0]},
            {"measure": "accuracy on what stays", "n": len(texts), "as many random units": random[1]},
        ]
        for row, key in zip(rows, ("forget", "retain"), strict=True):
            row |= {"before": found.rows()[0][key], "after": found.rows()[-1][key]}
        return [found.edit], rows

    def _page(self, title: str, edits: list["editing.Edit"], rows: Rows):
        from patchclamp import views

        facts = {"model": self.model, "method": self.method, "parameters": ", ".join(edits[0].parameters)}
        about = [{"edit": index, **edit.provenance} for index, edit in enumerate(edits)]
        return views.Report(
            title,
            facts=facts,
            sections=[
                views.Section(
                    "Before and after", [views.Table(rows, "shares of the questions, and the text that stays")]
                ),
                views.Section("What was edited", [views.Table(about, "one row an edit")]),
            ],
        )


def _neutral(model: "Model", edits: list["editing.Edit"], texts: list[str]) -> Rows:
    """What the text that shall stay loses: its next tokens that are found, before and under the edits, on average."""
    from patchclamp import editing, views

    def found() -> float:
        return float(editing.next_token_accuracy(model, texts).mean())

    before, after = found(), 0.0
    for edit in views.track(edits[:8], "text"):
        with edit.applied(model):
            after += found() / len(edits[:8])
    return [{"measure": "next tokens of the text", "n": len(texts), "before": before, "after": after}]
