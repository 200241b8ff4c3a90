"""On Relation-Specific Neurons in Large Language Models (2025).

Neurons whose activation tells a relation's prompts from others', found on some entities, are set to zero: facts of that
relation about other entities are lost and those of other relations stay. Entities are split three ways: to find
neurons, to choose how many (of each relation by itself), to judge.

Asked of a small model of twelve relations in two languages, trained here: its size and training were chosen on seed 1,
and on seeds 0, 2 and 3 .75, 1 and 1 of the relations lose 20 points more than the others, where random neurons make no
difference (.01), and .43, .54 and .49 more in the other language. Relations that have their first word and their
answers in common share 3.2, 1.4 and 1.8 times the neurons that chance would, those that have nothing in common .4; but
so they do in fresh weights (4.0), whose neurons read the word: of learning it says nothing. The model has ReLUs. With
SwiGLU (192 neurons, 48 names) hardly a relation had neurons of its own: .00 and .08 of them on two seeds, and where
neurons were scored by their size, since SwiGLU's are of either sign, .08 and .17.

And asked of `tales`, which need not be like the paper's models of 7 and 13 billion parameters, and is not: all but one
of its relations are read by attention from the subject's embedding, its MLPs beyond the first can all be taken out with
hardly a fact lost (a claim measures that), and neurons that know the relation decide nothing. The one relation whose
facts its first MLP holds has such neurons. So it is where neurons are scored by either sign or by size.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from patchclamp import ablate, editing, views
from patchclamp.editing.rewrite import SUBJECT, answered, log_probability
from patchclamp.editing.selective import average_precision
from patchclamp.interventions import Intervention
from patchclamp.studies.editing import _knowing as knowing
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.seeds import over_seeds
from patchclamp.studies.study import Study

study = Study(
    name="relation-neurons",
    paper="On Relation-Specific Neurons in Large Language Models",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales",
)

SHARES = (0.05, 0.1, 0.2, 0.3)  # of all neurons, from which each relation's number is chosen
SMALL_SHARES = (0.02, 0.05, 0.1, 0.2, 0.3)
OWN = 0.2  # a relation has neurons of its own where it loses this much more accuracy than the others do
DRAWS = 3  # of random neurons
PHRASINGS = 2


@study.identity(
    "average precision is scikit-learn's: largest difference", tolerance=1e-12, control="without ties", breaks=1e-3
)
def precision_is_scikit_learns(lab: Lab) -> Measured:
    from sklearn.metrics import average_precision_score

    scores = torch.randint(0, 6, (80, 12), generator=lab.generator).double()  # with many ties
    positive = torch.rand(80, generator=lab.generator) < 0.3
    apart = scores + 1e-3 * torch.rand(scores.shape, generator=lab.generator)
    theirs = [average_precision_score(positive, column) for column in scores.T.numpy()]
    ours, other = (average_precision(rows, positive) for rows in (scores, apart))
    return Measured.gap(ours, theirs, control=(other, theirs))


# ── a small model that needs its MLP ──────────────────────────────────────────────────────────────────────────────────


@study.finding("a small model knows twelve relations in two languages", at_least=0.9, control="fresh weights")
@over_seeds
def small_model_knows(lab: Lab) -> Measured:
    return Measured.mean(lab.once(_known, False), control=lab.once(_known, True))


@study.finding(
    "in it most relations have neurons of their own: share that lose 20 points more than the others",
    at_least=0.75,
    control="as many random neurons",
    given=small_model_knows,
)
@over_seeds
def most_are_specific(lab: Lab) -> Measured:
    gaps = torch.tensor(lab.once(_small_gaps, 0))
    return Measured.share(gaps[:, 0] >= OWN, control=(gaps[:, 1:] >= OWN).flatten())


@study.finding(
    "as many random neurons make no difference between relations: size of the mean difference of the losses",
    at_most=0.03,
    control="the relations' own neurons",
    given=most_are_specific,
)
@over_seeds
def random_are_not(lab: Lab) -> Measured:
    gaps = torch.tensor(lab.once(_small_gaps, 0))
    return Measured.number(gaps[:, 1:].mean().abs(), control=gaps[:, 0].tolist())


@study.finding(
    "they add up: rank correlation of their number and what is lost beyond the others",
    at_least=0.9,
    control="as many random neurons: mean over draws",
    given=most_are_specific,
)
@over_seeds
def cumulative(lab: Lab) -> Measured:
    """Of the mean over relations, from a fiftieth of all neurons to three tenths."""
    own, *drawn = map(_rank_correlation, lab.once(_by_number).mean(0))
    return Measured.number(own, control=sum(drawn) / len(drawn))


@study.finding(
    "relations with a word and answers in common share neurons: overlap, of what chance would share",
    at_least=1.0,
    control="relations that have nothing in common",
    given=most_are_specific,
)
@over_seeds
def versatile(lab: Lab) -> Measured:
    """Of a tenth of all neurons each; chance is the mean of the hypergeometric distribution."""
    overlaps = lab.once(_overlaps)
    related = overlaps[:, 0] > 0
    return Measured.mean(overlaps[related, 1], control=overlaps[~related, 1])


@study.finding(
    "found in one language they are needed in the other: mean loss there beyond the other relations",
    at_least=0.0,
    control="as many random neurons",
    given=most_are_specific,
)
@over_seeds
def across_languages(lab: Lab) -> Measured:
    gaps = torch.tensor(lab.once(_small_gaps, 1))
    return Measured.mean(gaps[:, 0], control=gaps[:, 1:])


# ── tales ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@study.finding("`tales` knows facts about the entities that judge", at_least=0.9, control="fresh weights")
def knows_facts(lab: Lab) -> Measured:
    asked = lab.once(_asked)["judge"]
    return Measured.share(asked.right(lab.model), control=asked.right(lab.fresh()))


@study.finding(
    "in `tales` some relation has neurons of its own: largest loss of its facts beyond the mean loss of the others",
    at_least=0.2,
    control="as many random neurons of each layer",
    given=knows_facts,
)
def one_has_its_own(lab: Lab) -> Measured:
    gaps = lab.once(_gaps)
    return Measured.number(max(gap[0] for gap in gaps.values()), control=[max(gap[1:]) for gap in gaps.values()])


@study.finding(
    "in `tales` most do: share of relations that lose 20 points more than the others",
    at_least=0.75,
    control="as many random neurons of each layer",
    given=knows_facts,
)
def most_have_their_own(lab: Lab) -> Measured:
    gaps = lab.once(_gaps).values()
    return Measured.share([g[0] >= OWN for g in gaps], control=[x >= OWN for gap in gaps for x in gap[1:]])


@study.finding(
    "where they do not, no neuron but the first layer's is needed: facts right without all other MLPs",
    at_least=0.9,
    control="with all MLPs, without one layer of attention: the best of the first half",
    given=knows_facts,
)
def later_neurons_are_not_needed(lab: Lab) -> Measured:
    asked = lab.once(_asked)["judge"]
    mlps = [ablate(f"mlp_out.{layer}") for layer in range(1, lab.model.n_layers)]
    attention = [asked.right(lab.model, [ablate(f"attn_out.{layer}")]) for layer in range(lab.model.n_layers // 2)]
    return Measured.share(asked.right(lab.model, mlps), control=max(attention, key=lambda hits: float(hits.sum())))


@study.figure(
    "Accuracy lost on each relation (columns) when a tenth of all neurons, those of one (rows), are set to zero"
)
def losses(lab: Lab):
    import xarray as xr

    model, names = lab.once(knowing.trained, knowing.STEPS), knowing.parts(lab.seed)[2]
    before = knowing.right(model, lab.seed, names).mean(0)
    sets = lab.once(_small_neurons, 0.1)
    table = torch.stack([before - knowing.right(model, lab.seed, names, 0, one.ablation()).mean(0) for one in sets])
    array = xr.DataArray(table, dims=("neurons of", "facts of"))
    return views.heatmap(array, title="Accuracy lost by a small model", colour_label="lost")


# ── the small model ───────────────────────────────────────────────────────────────────────────────────────────────────


def _known(lab: Lab, fresh: bool) -> Tensor:
    """By fact about names that judge, in both languages."""
    model, judge = lab.once(knowing.trained, 0 if fresh else knowing.STEPS), knowing.parts(lab.seed)[2]
    return torch.cat([knowing.right(model, lab.seed, judge, language).flatten() for language in (0, 1)])


def _small_loss(lab: Lab, part: int, units: editing.Units, language: int = 0) -> Tensor:
    """[relation]: the loss of accuracy less the mean loss of the other relations."""
    model, names = lab.once(knowing.trained, knowing.STEPS), knowing.parts(lab.seed)[part]
    before, after = (knowing.right(model, lab.seed, names, language, do).mean(0) for do in ((), units.ablation()))
    lost = before - after
    return lost - (lost.sum() - lost) / (len(lost) - 1)


def _small_neurons(lab: Lab, share: float) -> list[editing.Units]:
    model = lab.once(knowing.trained, knowing.STEPS)
    found = knowing.selectivity(model, knowing.parts(lab.seed)[0])
    return [one.top(round(share * editing.count(model, "mlp_post.0"))) for one in found]


def _small_gaps(lab: Lab, language: int) -> list[list[float]]:
    """Of each relation the loss beyond the others', of its neurons and of random ones, on the names that judge."""
    model, found = lab.once(knowing.trained, knowing.STEPS), []
    tried = [lab.once(_small_neurons, share) for share in SMALL_SHARES]
    for relation in range(knowing.RELATIONS):
        own = [units[relation] for units in tried]
        best = max(own, key=lambda units: float(_small_loss(lab, 1, units)[relation]))
        sets = [best, *(best.drawn(model, 100 * lab.seed + draw) for draw in range(DRAWS))]
        found.append([float(_small_loss(lab, 2, units, language)[relation]) for units in sets])
    return found


def _by_number(lab: Lab) -> Tensor:
    """[relation, own or drawn, number]: the loss beyond the others', on the names that judge."""
    model, rows = lab.once(knowing.trained, knowing.STEPS), []
    for relation in range(knowing.RELATIONS):
        own = [lab.once(_small_neurons, share)[relation] for share in SMALL_SHARES]
        sets = [own, *([u.drawn(model, 100 * lab.seed + draw) for u in own] for draw in range(DRAWS))]
        rows.append([[float(_small_loss(lab, 2, units)[relation]) for units in of] for of in sets])
    return torch.tensor(rows)


def _overlaps(lab: Lab) -> Tensor:
    """[pair of relations, 2]: whether they are related, and how many neurons they share, of what chance would."""
    sets, rows = lab.once(_small_neurons, 0.1), []
    every = editing.count(lab.once(knowing.trained, knowing.STEPS), "mlp_post.0")
    for one in range(knowing.RELATIONS):
        for other in range(one):
            chance = len(sets[one]) * len(sets[other]) / every
            rows.append([one // 2 == other // 2, len(sets[one] & sets[other]) / chance])
    return torch.tensor(rows)


def _rank_correlation(row: Tensor) -> float:
    """With the numbers that it was measured at; of a row that is the same throughout it is not defined."""
    if bool((row == row[0]).all()):
        return float("nan")
    n, away = len(row), row.argsort().argsort() - torch.arange(len(row))
    return 1 - 6 * int((away**2).sum()) / (n * (n * n - 1))


# ── what the claims about tales share ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Asked:
    """Prompts with their answers and relations."""

    prompts: list[str]
    answers: list[str]
    relations: list[str]

    def right(self, model, do: list[Intervention] | tuple = ()) -> Tensor:
        """Whether each answer's tokens are the likeliest."""
        tokens, mask = answered(model, self.prompts, self.answers)
        logits = model.run(tokens, do=do).logits
        assert logits is not None
        return log_probability(logits, tokens.ids, mask)[1].cpu()

    def by_relation(self, hits: Tensor) -> dict[str, float]:
        names = dict.fromkeys(self.relations)
        return {name: float(hits[torch.tensor([r == name for r in self.relations])].double().mean()) for name in names}


def _asked(lab: Lab) -> dict[str, Asked]:
    """Half of each relation's entities find neurons, a quarter chooses how many, a quarter judges."""
    lab.need(lab.truth.facts, "a model whose facts are known")
    table = _table(lab)
    rng = random.Random(lab.seed)
    most = 80 if lab.full else 24
    parts: dict[str, list[tuple[str, str, str]]] = {"find": [], "choose": [], "judge": []}
    for relation, templates in table.templates.items():
        known = [(s, o) for s, r, o in table.facts if r == relation]
        rng.shuffle(known)
        known = known[:most]
        half, end = len(known) // 2, 3 * len(known) // 4
        for part, chosen in (("find", known[:half]), ("choose", known[half:end]), ("judge", known[end:])):
            used = templates if part == "find" else templates[:PHRASINGS]
            parts[part] += [(t.replace(SUBJECT, s), o, relation) for s, o in chosen for t in used]
    return {part: Asked(*(list(column) for column in zip(*rows, strict=True))) for part, rows in parts.items()}


def _table(lab: Lab):
    from patchclamp.organisms.tales import world

    table = world.fact_table()
    lab.need(set(table.facts) <= set(lab.truth.facts), "a model that was taught tales' facts")
    return table


def _neurons(lab: Lab) -> dict[str, editing.Units]:
    """Each relation's, as many as lose most of its facts beyond others' on the entities that choose."""
    asked = lab.once(_asked)
    found = editing.selectivity(lab.model, asked["find"].prompts, asked["find"].relations)
    every = sum(editing.count(lab.model, f"mlp_post.{layer}") for layer in range(lab.model.n_layers))
    was = asked["choose"].by_relation(asked["choose"].right(lab.model))
    chosen = {}
    for relation in lab.progress(found, "relations"):
        tried = [found[relation].top(round(share * every)) for share in SHARES]
        gaps = [_gap(relation, _losses(lab, "choose", units, was)) for units in tried]
        chosen[relation] = tried[gaps.index(max(gaps))]
    return chosen


def _lost(lab: Lab) -> dict[str, dict[str, float]]:
    """Of the neurons of each relation, the accuracy that each relation loses, on the entities that judge."""
    asked = lab.once(_asked)["judge"]
    was = asked.by_relation(asked.right(lab.model))
    return {relation: _losses(lab, "judge", units, was) for relation, units in lab.once(_neurons).items()}


def _gaps(lab: Lab) -> dict[str, list[float]]:
    """Of each relation, its loss beyond the others': of its neurons, then of random ones."""
    asked = lab.once(_asked)["judge"]
    was = asked.by_relation(asked.right(lab.model))
    found = {}
    for relation, units in lab.progress(lab.once(_neurons).items(), "random neurons"):
        drawn = [_losses(lab, "judge", units.drawn(lab.model, lab.seed + draw), was) for draw in range(DRAWS)]
        found[relation] = [_gap(relation, lost) for lost in (lab.once(_lost)[relation], *drawn)]
    return found


def _losses(lab: Lab, part: str, units: editing.Units, was: dict[str, float]) -> dict[str, float]:
    asked = lab.once(_asked)[part]
    now = asked.by_relation(asked.right(lab.model, units.ablation()))
    return {relation: was[relation] - now[relation] for relation in was}


def _gap(relation: str, lost: dict[str, float]) -> float:
    others = [loss for other, loss in lost.items() if other != relation]
    return lost[relation] - sum(others) / len(others)
