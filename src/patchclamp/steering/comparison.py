"""A model and its fine-tune compared: how far they differ away from what the tuning was about, and what that says.

    base, tuned = pc.load("organism:tales"), pc.load("organism:tales-sea")
    found = pc.steering.compare(base, tuned, unrelated)
    found.readable, found.evidence()            # nats a token, beside those of random vectors of the same lengths
    found.report("diff/report.html")

The difference of activations on the first tokens of texts about anything else (`pc.steering.diffing`) is read in three
ways. Whether the tokens that come out say anything is judged without looking at them: by how much likelier they are in
what the fine-tune writes than in what its base writes. Random vectors of the same lengths, read through the same
fine-tune, go beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.inputs import Tokens
from patchclamp.model import Model
from patchclamp.steering import diffing
from patchclamp.steering.diffing import Readout, Topics, Trace
from patchclamp.views.terminal import track

if TYPE_CHECKING:
    import plotly.graph_objects as go

REPEATING = (" cat cat; dog dog; table table; ?", " apple apple lemon lemon river river ?")
"""Prompts that repeat tokens, at whose last one the difference is put."""
NEUTRAL, LONGEST = 32, 64
"""Texts on which the cost of steering is measured, and tokens of each."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """`traces` by site, and those of either half of the texts; what is read at one of them, and from `random` vectors.

    `writing` is the evidence of tokens for what the fine-tune writes against what its base writes, both without being
    steered; `unsteered` what the base writes greedily, by opening; `halves` the traces of every second text.
    """

    base: str
    tuned: str
    texts: int
    site: str
    traces: Mapping[str, Trace]
    halves: tuple[Mapping[str, Trace], Mapping[str, Trace]]
    readout: Readout
    random: tuple[Readout, ...]
    unsteered: tuple[str, ...]
    openings: tuple[str, ...]
    writing: Topics
    candidates: Topics | None = None
    tokenizer: Any = field(default=None, repr=False)

    def sizes(self) -> Rows:
        """By site, the mean length of the difference behind the first token as a share of a state's; beside it that of
        the difference between what either half of the texts gives.
        """
        first, second = self.halves
        rows = []
        for site, trace in self.traces.items():
            apart = (first[site].vectors - second[site].vectors).norm(dim=-1) / trace.norms
            rows.append(
                {"site": site, "size": float(trace.sizes[1:].mean()), "between halves": float(apart[1:].mean())}
            )
        return rows

    def evidence(self) -> Rows:
        """By way of reading, nats a token by which the fine-tune's writing explains what is said better than its
        base's does; of each of the random vectors too.
        """
        own, others = self.writing.by_way(self.readout), [self.writing.by_way(one) for one in self.random]
        rows = [
            {"read by": way, "difference": float(own[way][0]), "random": [float(other[way][0]) for other in others]}
            for way in own
        ]
        (_, total), *_ = self.writing.rank(self.readout)
        beside = [self.writing.rank(one)[0][1] for one in self.random]
        return [*rows, {"read by": "all three", "difference": total, "random": beside}]

    @property
    def readable(self) -> bool:
        """Whether what is read speaks for the fine-tune's writing, and more than what any random vector says does."""
        last = self.evidence()[-1]
        return last["difference"] > max(0.0, *last["random"])

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """Candidate topics, best first, with their evidence in nats a token; empty where there were no candidates."""
        return [] if self.candidates is None else self.candidates.rank(self.readout)

    @property
    def topic(self) -> str | None:
        """The candidate that the difference is about; None where ordinary text explains it as well."""
        return None if self.candidates is None else self.candidates.name(self.readout)

    def readings(self, k: int = 10) -> Rows:
        """What is read, as text: the first `k` tokens by lens and patchscope, and what the base writes when steered."""
        other = self.random[0]
        rows: Rows = [
            {"read by": f"lens, token {place}", "difference": self._said(mine, k), "random": self._said(theirs, k)}
            for place, (mine, theirs) in enumerate(zip(self.readout.lens, other.lens, strict=True), start=1)
        ]
        pairs = zip(self.readout.patchscope, other.patchscope, strict=True)
        rows += [
            {"read by": f"patchscope {number}", "difference": self._said(mine, k), "random": self._said(theirs, k)}
            for number, (mine, theirs) in enumerate(pairs, start=1)
        ]
        return rows

    def written(self) -> Rows:
        """What the base writes after each opening, as it is, with the difference added, and with a random vector."""
        columns = (self.openings, self.unsteered, self.readout.texts, self.random[0].texts)
        names = ("opening", "unsteered", "difference", "random")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def findings(self) -> list[str]:
        """The result in short sentences."""
        size = next(row for row in self.sizes() if row["site"] == self.site)
        last = self.evidence()[-1]
        said = [
            f"On texts about anything the two differ at {self.site} by {size['size']:.2g} of a state's length; the two "
            f"halves of the texts give vectors that differ by {size['between halves']:.2g}.",
            f"What is read from the difference is {last['difference']:.2f} nats a token likelier in what {self.tuned} "
            f"writes than in what {self.base} writes; from random vectors of the same lengths "
            f"{min(last['random']):.2f} to {max(last['random']):.2f}. It says "
            + ("what the fine-tune is given to write of." if self.readable else "no more than they do."),
        ]
        if self.candidates is not None:
            said.append(f"Topic, of {len(self.ranking)} candidates: {self.topic or 'none'}.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "texts": self.texts,
            "site": self.site,
            "strength": self.readout.strength,
            "readable": self.readable,
            "topic": self.topic,
            "ranking": self.ranking,
            "sizes": self.sizes(),
            "evidence": self.evidence(),
            "readings": self.readings(),
            "written": self.written(),
        }

    def save(self, folder: str | Path) -> None:
        """Write `comparison.json`, and the difference as a direction, `direction.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "comparison.json").write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")
        self.traces[self.site].direction().save(folder / "direction.safetensors")

    def plot(self) -> "go.Figure":
        """The size of the difference by site, beside what the two halves of the texts differ by."""
        from patchclamp import views

        rows = self.sizes()
        sizes, apart = ([row[key] for row in rows] for key in ("size", "between halves"))
        return views.bars(
            [row["site"] for row in rows],
            sizes,
            control=apart,
            x_title="share of a state's length",
            label="difference",
            control_label="between halves of the texts",
        )

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page."""
        from patchclamp.views import Plot, Report, Section, Table

        evidence = [
            row | {"random": sum(row["random"]) / len(row["random"]), "random, most": max(row["random"])}
            for row in self.evidence()
        ]
        sections = [
            Section(
                "What it says",
                [
                    Table(self.readings(), "tokens, likeliest first, beside those of a random vector"),
                    Table(evidence, "nats a token by which the fine-tune's writing explains it better than its base's"),
                ],
            ),
            Section(
                "What the base writes under it",
                [Table(self.written(), f"greedily, with {self.readout.strength:.3g} times the difference added")],
            ),
            Section("How far the models differ", [Plot(self.plot(), "by site, behind the first token")]),
        ]
        if self.candidates is not None:
            rows = [{"topic": name, "nats a token": value} for name, value in self.ranking]
            sections.insert(1, Section("Candidate topics", [Table(rows, "against ordinary text")]))
        facts = {"base": self.base, "fine-tune": self.tuned, "read at": self.site, "texts": self.texts}
        return Report(f"{self.tuned} less {self.base}", facts=facts, findings=self.findings(), sections=sections).save(
            path
        )

    def _repr_html_(self) -> str:
        from patchclamp import views

        return views.html_table(self.readings(), " ".join(self.findings()))

    def _said(self, ids: Any, k: int) -> str:
        return " ".join(self.tokenizer.decode([int(i)]).strip() for i in ids[:k])


def compare(
    base: Model,
    tuned: Model,
    texts: Sequence[str],
    *,
    site: str | None = None,
    positions: int = 5,
    repeating: Sequence[str] = REPEATING,
    openings: Sequence[str] = (),
    candidates: Topics | None = None,
    k: int = 20,
    budget: float = 1.0,
    tokens: int = 16,
    samples: int = 8,
    controls: int = 10,
    seed: int = 0,
) -> Comparison:
    """Read what fine-tuning left behind, on `texts` that have nothing to do with it, beside `controls` random vectors.

    The difference over the first `positions` tokens is measured at every layer and read at `site` (half-way through).
    Openings are continued, by the base under as much of it as `budget` nats a token of text allow, and `samples` times
    by both models as they are; the first three words of some texts are these, if none are given. `candidates`
    (`diffing.topics`) are ranked. Raises `DirectionError` where the models read texts differently, where the two do not
    differ, and for texts shorter than `positions`.
    """
    if controls < 1:
        raise ValueError(f"controls={controls}: what is read says nothing without a random vector beside it")
    texts = list(texts)
    site = site or f"resid_post.{max(0, base.n_layers // 2 - 1)}"
    openings = tuple(openings or dict.fromkeys(" ".join(text.split()[:3]) for text in texts[:: -(-len(texts) // 8)]))
    parts = track((texts, texts[::2], texts[1::2]), "first tokens")
    whole, first, second = (
        diffing.traces(base, tuned, part, sites=["resid_post.*", site], positions=positions) for part in parts
    )
    some = base.tokens(texts[:: -(-len(texts) // NEUTRAL)])
    neutral = Tokens(some.ids[:, :LONGEST], some.mask[:, :LONGEST])
    drawn = [whole[site].random(seed=1000 * seed + number) for number in range(controls)]
    own, *others = (
        diffing.read(
            base,
            tuned,
            trace,
            repeating=repeating,
            openings=openings,
            neutral=neutral,
            k=k,
            budget=budget,
            tokens=tokens,
        )
        for trace in track([whole[site], *drawn], "reading the difference, and random vectors")
    )
    writes = [_texts(model, openings * samples, 2 * tokens, seed) for model in track((tuned, base), "writing")]
    return Comparison(
        base=base.name,
        tuned=tuned.name,
        texts=len(texts),
        site=site,
        traces=whole,
        halves=(first, second),
        readout=own,
        random=tuple(others),
        unsteered=_texts(base, openings, tokens, None),
        openings=openings,
        writing=diffing.topics(base, {tuned.name: writes[0]}, writes[1]),
        candidates=candidates,
        tokenizer=base.tokenizer,
    )


def _texts(model: Model, openings: Sequence[str], tokens: int, seed: int | None) -> tuple[str, ...]:
    """What a model writes after them: sampled, or greedily where there is no seed."""
    written = model.generate(list(openings), max_new_tokens=tokens, do_sample=seed is not None, seed=seed or 0).new_text
    assert isinstance(written, list)
    return tuple(written)
