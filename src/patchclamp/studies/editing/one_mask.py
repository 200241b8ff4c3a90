"""One Mask to Rule Them All: on hidden facts after editing and how to find them (Holmov et al. 2026).

A binary mask over an edited matrix, learned on some edits, takes back others that it has not seen: edits leave a trace
in common. Measured where the trace is planted (a linear memory whose rank-one edits read 16 of 192 inputs) and on real
ROME edits of a model, of those that took, beside masks with as many zeros: at random, on the largest weights, and where
the edits change most (which on planted edits is the trace itself). No subject is in both parts of the real edits, as
one's edits have one key.

On `tales` the mask takes back two thirds where the paper's takes back 70 %: .67 [.58, .75] of 120 edits in `--full`,
.58 of 40 in a quick run. Edits to learn on help: in a trial on facts drawn otherwise, learned on 40 it took back .34
of the others, on 88 .47, on 350 of the same 88 subjects .59 (the paper has 2,700 of as many subjects; the model knows
128). Neither the weight of neutral text (.60 and .63 with a third and a tenth of it), nor the rate, nor twice the
margin, nor what the unedited model says on the edits' own prompts in place of neutral text (.36) changed that. Facts
can still be written under it: 60 % of them, where the paper has 38 %.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import editing, views
from patchclamp.editing import Edit, MaskSearch, Rewrite
from patchclamp.editing.masks import Batch, largest_mask, mean_change, random_mask
from patchclamp.patching.direct import direct_effect
from patchclamp.studies.editing._planted_edits import INPUTS, OUTPUTS, Memory
from patchclamp.studies.editing._tales_facts import rewrites
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study
from patchclamp.tasks import Task

study = Study(
    name="one-mask",
    paper="One Mask to Rule Them All: On Hidden Facts after Editing and How to Find Them (arXiv:2605.28839)",
    seed="000_14db195f17440023.txt",
    organism="tales",
)

ALL, HELD = 128, 40  # subjects that `tales` knows, of which the mask is not learned on so many
PARTS = ("learn", "test", "likeliest", "written", "lost")
MASKS = ("learned", "random", "largest weights", "largest changes", "no mask")
CONFIDENT = 0.9  # probability of the new answer at which an edit counts as one that took, as in the trial of the method


@study.identity(
    "the batch's masked pass is the pass of each edited and masked matrix: largest difference of a margin",
    tolerance=1e-4,
    control="the mask on the edits alone",
    breaks=1e-2,
)
def batched_is_materialised(lab: Lab) -> Measured:
    edits, facts = lab.once(_edited, lab.seed).test
    edits, facts = edits[:4], facts[:4]
    batch = Batch.of(lab.model, edits, facts)
    mask = (torch.rand(batch.weight.shape, generator=lab.generator) > 0.2).to(batch.weight.dtype)
    with torch.no_grad():
        ours = batch.margin(lab.model, mask)
        stored = mask.bool() if batch.down.by_output else mask.bool().T.contiguous()
        plain, ones = [], torch.ones_like(mask)
        for index, edit in enumerate(edits):
            with (edit + Edit.masks({batch.down.name: stored})).applied(lab.model):
                logits = lab.model.run(batch.tokens).logits
            assert logits is not None
            end = logits[index, int(batch.tokens.mask[index].sum()) - 1]
            plain.append(end[batch.old[index]] - end[batch.new[index]])
        return Measured.gap(ours, torch.stack(plain), control=(ours, batch.margin(lab.model, ones)))


@study.finding(
    "a mask learned on planted edits takes back others",
    at_least=0.9,
    control="as many zeros at random",
)
def planted_edits_are_taken_back(lab: Lab) -> Measured:
    memories = lab.once(_planted)
    ours, control = (
        torch.cat([m.reverted(mask) for m, *masks in memories for mask in [masks[which]]]) for which in (0, 1)
    )
    return Measured.share(ours, control=control)


@study.finding("what it zeroes lies on the planted inputs", at_least=0.8, control="as many zeros at random")
def precision(lab: Lab) -> Measured:
    shares = [[m.precision(mask) for mask in masks] for m, *masks in lab.once(_planted)]
    return Measured.mean([s[0] for s in shares], control=[s[1] for s in shares])


@study.finding("and what lies on the planted inputs is zeroed", at_least=0.8, control="as many zeros at random")
def recall(lab: Lab) -> Measured:
    shares = [[m.recall(mask) for mask in masks] for m, *masks in lab.once(_planted)]
    return Measured.mean([s[0] for s in shares], control=[s[1] for s in shares])


@study.finding(
    "with all edits put on at once, the mask leaves facts that were never edited right",
    at_least=0.98,
    control="all edits without the mask",
    given=planted_edits_are_taken_back,
)
def unedited_facts_stay(lab: Lab) -> Measured:
    memories = lab.once(_planted)
    ours = torch.cat([m.unedited(mask) for m, mask, _ in memories])
    return Measured.share(ours, control=torch.cat([m.unedited(torch.ones_like(mask)) for m, mask, _ in memories]))


@study.finding("ROME rewrites facts of the model: the new answer is generated", at_least=0.9, control="before the edit")
def edits_take(lab: Lab) -> Measured:
    edits, facts = lab.once(_edited, lab.seed).test
    report = editing.evaluate(lab.model, facts, edits)
    return Measured.share(report["efficacy"].after.generated, control=report["efficacy"].before.generated)


@study.finding(
    "a mask learned on edits that took takes these back",
    at_least=0.8,
    control="as many zeros at random",
    given=edits_take,
)
def learned_edits_are_taken_back(lab: Lab) -> Measured:
    return _beside(lab, "learn", "random")


@study.finding(
    "and others that took, of other subjects", at_least=0.7, control="as many zeros at random", given=edits_take
)
def real_edits_are_taken_back(lab: Lab) -> Measured:
    return _beside(lab, "test", "random")


@study.finding(
    "the same, beside a mask of the largest weights",
    at_least=0.7,
    control="as many zeros on the largest weights",
    given=edits_take,
)
def beside_largest_weights(lab: Lab) -> Measured:
    return _beside(lab, "test", "largest weights")


@study.finding(
    "the same, beside a mask of what the edits change most",
    at_least=0.7,
    control="as many zeros where the edits change most",
    given=edits_take,
)
def beside_largest_changes(lab: Lab) -> Measured:
    return _beside(lab, "test", "largest changes")


@study.finding(
    "kept on while facts are written, it lets few of them be: the new answer is likelier than the old one",
    at_most=0.5,
    control="as many zeros at random",
    given=edits_take,
)
def editing_under_it_fails(lab: Lab) -> Measured:
    """The paper has 38 % of edits left, of 98 %."""
    return Measured.share(_pooled(lab, "written", "learned"), control=_pooled(lab, "written", "random"))


@study.finding(
    "what an edit adds to the new answer's lead is written by later attention more than by later MLPs: logits",
    at_least=0.0,
    control="by later MLPs",
    given=edits_take,
)
def attention_writes_it(lab: Lab) -> Measured:
    """Direct effect on the logit difference at the prompt's last token, edited less original, by edit."""
    rows = _by_seed(lab, _direct)
    ours, control = (
        torch.cat([r[part]["edited"] - r[part]["original"] for r in rows]) for part in ("attention", "mlp")
    )
    return Measured.mean(ours, control=control)


@study.finding(
    "and the mask takes half of that back: share of what later attention adds",
    at_least=0.5,
    control="as many zeros at random",
    given=attention_writes_it,
)
def the_mask_takes_it_back(lab: Lab) -> Measured:
    """By edit, of the mean that is added; of other subjects than the mask was learned on."""
    rows = [r["attention"] for r in _by_seed(lab, _direct)]
    added = torch.cat([r["edited"] - r["original"] for r in rows]).mean()
    ours, control = (torch.cat([r["edited"] - r[name] for r in rows]) / added for name in ("learned", "random"))
    return Measured.mean(ours, control=control)


@study.figure("Share of the edits of the model that each mask takes back")
def masks_beside_each_other(lab: Lab):
    labels = {"test": "other subjects", "likeliest": "the old answer likeliest of all", "learn": "learned on"}
    bars = {f"{name}, {label}": _pooled(lab, part, name) for part, label in labels.items() for name in MASKS}
    return views.bars(list(bars), [float(shares.mean()) for shares in bars.values()], title="Edits taken back")


@study.figure("What each mask costs other text under an edit: nats a token, .07 to .37 by the paper's perplexities")
def cost(lab: Lab):
    return views.bars(list(MASKS), [float(_pooled(lab, "lost", name).mean()) for name in MASKS], title="Nats a token")


# ── masks on planted edits ────────────────────────────────────────────────────────────────────────────────────────────


def _planted(lab: Lab) -> list[tuple[Memory, Tensor, Tensor]]:
    """Memories with the mask learned on each, and one with as many zeros at random."""
    found = []
    search = MaskSearch(steps=0 if lab.untrained else 300)
    for seed in lab.progress(range(5 if lab.full else 3), "planted memories"):
        memory = Memory.draw(lab.generator)
        keep, _ = editing.learn_mask(
            (OUTPUTS, INPUTS), lambda mask, m=memory: m.loss(mask, search.margin, 1.0), search=search, seed=seed
        )
        found.append((memory, keep, random_mask(keep, seed)))
    return found


# ── edits of the model ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Edited:
    """ROME edits that took, one a fact, at one layer: those to learn on, and others of other subjects."""

    layer: int
    moment: Float[Tensor, "in in"]
    learn: tuple[list[Edit], list[Rewrite]]
    test: tuple[list[Edit], list[Rewrite]]


def _edited(lab: Lab, seed: int) -> Edited:
    """At the layer where a few facts can be rewritten best. Of held-out subjects one fact each, of others several."""
    subjects = sorted({fact.subject for fact in rewrites(lab, ALL, seed)})
    held = set(random.Random(seed).sample(subjects, HELD))
    several = 6 if lab.full else 3  # facts of each subject, edited one at a time
    draws = [rewrites(lab, ALL, seed=100 + 6 * seed + draw) for draw in range(several)]
    test = [fact for fact in draws[0] if fact.subject in held]
    learn = [fact for facts in draws for fact in facts if fact.subject not in held]
    if lab.untrained:
        learn, test = learn[:8], test[:8]  # no edit will take
    layer = int(editing.reachable(lab.model, rewrites(lab, 4, seed + 99)).argmax())
    moment = editing.second_moment(lab.model, _text(lab, 150, 10 * seed + 1), layer)
    edits = editing.rome(lab.model, learn + test, layer, moment=moment)
    parts = (edits[: len(learn)], learn), (edits[len(learn) :], test)
    return Edited(layer, moment, *(part if lab.untrained else _sure(lab, *part) for part in parts))


def _sure(lab: Lab, edits: list[Edit], facts: list[Rewrite]) -> tuple[list[Edit], list[Rewrite]]:
    sure = [index for index, p in enumerate(_probability(lab, edits, facts)) if p > CONFIDENT]
    lab.need(len(sure) >= 12, "a model in which a dozen facts can be rewritten with confidence")
    return [edits[index] for index in sure], [facts[index] for index in sure]


def _masks(lab: Lab, seed: int) -> dict[str, Tensor]:
    """What stays of the edited matrix, [out, in]: as learned, and with as many zeros elsewhere."""
    edited = lab.once(_edited, seed)
    search = MaskSearch(steps=300, rows=32, texts=4, learning_rate=0.1)
    neutral = _text(lab, 64, 10 * seed + 2)
    learned = editing.reversing_mask(lab.model, *edited.learn, neutral=neutral, search=search, seed=seed).keep
    batch = Batch.of(lab.model, *edited.learn)
    return {
        "learned": learned,
        "random": random_mask(learned, seed),
        "largest weights": largest_mask(learned, batch.weight),
        "largest changes": largest_mask(learned, mean_change(edited.learn[0], batch.down)),
        "no mask": torch.ones_like(learned),
    }


def _real(lab: Lab, seed: int) -> dict[str, dict[str, Tensor]]:
    """By mask, a value an edit: of those it was learned on and of the others, whether they are taken back; whether
    others can be written under it. And by text, what is lost under an edit with the mask on.
    """
    edited = lab.once(_edited, seed)
    if lab.untrained:
        return {part: dict.fromkeys(MASKS, torch.full((2,), float(part == "written"))) for part in PARTS}
    found: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    texts, down = _text(lab, 32, 10 * seed + 3), Batch.of(lab.model, *edited.test).down
    plain = _nats(lab, texts)
    for name, keep in lab.progress(list(lab.once(_masks, seed).items()), "masks beside each other"):
        on = Edit.masks({down.name: keep if down.by_output else keep.T.contiguous()})
        found["learn"][name] = editing.reversed_by(lab.model, *edited.learn, keep).double()
        found["test"][name] = editing.reversed_by(lab.model, *edited.test, keep).double()
        found["likeliest"][name] = editing.reversed_by(lab.model, *edited.test, keep, likeliest=True).double()
        with on.applied(lab.model):
            again = editing.rome(lab.model, edited.test[1], edited.layer, moment=edited.moment)
            found["written"][name] = 1 - editing.reversed_by(lab.model, again, edited.test[1], keep).double()
        with (edited.test[0][0] + on).applied(lab.model):
            found["lost"][name] = _nats(lab, texts) - plain
    return found


def _direct(lab: Lab, seed: int) -> dict[str, dict[str, Tensor]]:
    """[edit] logits that later attention and later MLPs write for the new answer over the old one, of other subjects:
    without the edit, under it, and under it with a mask on.
    """
    edited = lab.once(_edited, seed)
    if lab.untrained:
        return {part: dict.fromkeys(("original", "edited", *MASKS), torch.zeros(2)) for part in ("attention", "mlp")}
    edits, facts = edited.test
    batch, masks = Batch.of(lab.model, edits, facts), lab.once(_masks, seed)
    # Read under the clean prompts alone: there is no corrupted side.
    sides = (batch.tokens.ids, batch.tokens.ids, batch.new[:, None], batch.old[:, None], batch.tokens.mask.bool())
    task = Task("edits", *sides)
    ways = {"original": None, "edited": masks["no mask"], "learned": masks["learned"], "random": masks["random"]}
    found: dict[str, dict[str, Tensor]] = {"attention": {}, "mlp": {}}
    for name, keep in ways.items():
        do = [] if keep is None else batch.masked(lab.model, keep.to(batch.weight.dtype), batch.owner)
        with lab.model.under(do=do):
            effect = direct_effect(lab.model, task)
        for part, kinds in (("attention", ("head_out.", "attn_out.", "b_O.")), ("mlp", ("mlp_out.", "b_out."))):
            rows = [
                str(c)
                for c in effect["component"].values
                if str(c).startswith(kinds) and int(str(c).split(".")[1]) > edited.layer
            ]
            found[part][name] = torch.tensor(effect.sel(component=rows).sum("component").values)
    return found


def _by_seed(lab: Lab, work: Callable[[Lab, int], Any]) -> list[Any]:
    return [lab.once(work, seed) for seed in range(lab.seed, lab.seed + (3 if lab.full else 1))]


def _pooled(lab: Lab, part: str, name: str) -> Tensor:
    return torch.cat([found[part][name] for found in _by_seed(lab, _real)])


def _beside(lab: Lab, part: str, other: str) -> Measured:
    return Measured.share(_pooled(lab, part, "learned"), control=_pooled(lab, part, other))


def _nats(lab: Lab, texts: list[str]) -> Tensor:
    """[text] mean nats a token."""
    run = lab.model.run(texts)
    assert run.logits is not None and run.tokens is not None
    ids, real = run.tokens.ids[:, 1:], run.tokens.mask[:, 1:].double()
    said = run.logits[:, :-1].double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return -(said * real).sum(1) / real.sum(1)


def _probability(lab: Lab, edits: list[Edit], facts: list[Rewrite]) -> list[float]:
    """Of the new answer's first token, under each edit."""
    batch = Batch.of(lab.model, edits, facts)
    with torch.no_grad():
        ends = batch.ends(lab.model, torch.ones_like(batch.weight)).softmax(-1)
    return ends[torch.arange(len(batch.owner)), batch.new].tolist()


def _text(lab: Lab, n: int, seed: int) -> list[str]:
    lab.need(lab.truth.writer is not None, "a model whose training text can be written anew")
    return [document.text for document in lab.truth.documents(n, seed=seed)]
