"""Comparing optimization targets for contrast-consistent search (Fry et al. 2023).

Contrast-consistent search finds, without labels, a direction along which a statement and its negation are on opposite
sides. Midpoint-displacement asks the same of a direction in one quadratic form, the midpoints of pairs near zero and
their ends far apart, with a weight h between the two; its optimum is an eigenvector. Some h gives the direction of CCS,
and a better h does better. Measured on planted pairs (a direction of truth, one that is random within each pair, noise)
and on a model's statements "Oslo is in Norway" and "Oslo is not in Norway".
"""

from typing import Literal

import torch
from torch import Tensor

from patchclamp import views
from patchclamp.model import Model
from patchclamp.organisms.tales import knowledge, world
from patchclamp.probes import CCS, accurate_h, agreeing_h, descended
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="ccs-md",
    paper="Comparing Optimization Targets for Contrast-Consistent Search (arXiv:2311.00488)",
    seed="000_14db195f17440023.txt",
    organism="tales",
)

WIDTH, PAIRS = 64, 2000
NOISE = 0.5
"""Standard deviation of the noise, at which CCS is right on 80 to 95 % of the planted pairs."""
GRID = (0.0, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.999)


@study.identity(
    "the eigenvector is what descent on the midpoint-displacement loss finds: 1 - |cosine|",
    tolerance=1e-3,
    control="descent at another h",
    breaks=1e-2,
)
def eigenvector_is_the_optimum(lab: Lab) -> Measured:
    pairs = [_planted(lab, seed)[0] for seed in range(_draws(lab))]
    ours = torch.stack([CCS(loss="midpoint", h=0.9).fit(p).weight_ for p in pairs])
    same, other = (torch.stack([descended(CCS(h=h, tries=2, seed=lab.seed), p) for p in pairs]) for h in (0.9, 0.1))
    ones = torch.ones(len(pairs))
    return Measured.gap((ours * same).sum(-1).abs(), ones, control=((ours * other).sum(-1).abs(), ones))


@study.finding(
    "contrast-consistent search tells the truth of planted pairs",
    at_least=0.8,
    control="a random direction",
)
def ccs_finds_the_truth(lab: Lab) -> Measured:
    return Measured.mean(lab.once(_accuracies)["ccs"], control=lab.once(_accuracies)["random"])


@study.finding(
    "which a random direction does not: accuracy of CCS less that of one",
    at_least=0.15,
    control="accuracy of another random direction less that of the one",
    given=ccs_finds_the_truth,
)
def a_random_direction_is_not_it(lab: Lab) -> Measured:
    rows = lab.once(_accuracies)
    return Measured.mean(rows["ccs"] - rows["random"], control=rows["another random"] - rows["random"])


@study.finding(
    "some h gives the direction of contrast-consistent search: mean |cosine| with 20 of its probes",
    at_least=0.9,
    control="the best h for as many random directions",
)
def some_h_agrees(lab: Lab) -> Measured:
    found = [lab.once(_agreement, seed) for seed in range(_draws(lab))]
    return Measured.mean([ours[1] for ours, _ in found], control=[random[1] for _, random in found])


@study.finding(
    "which is a large one",
    at_least=0.85,
    control="the h that agrees best with the direction in which pairs differ most",
    given=some_h_agrees,
)
def the_h_that_agrees_is_large(lab: Lab) -> Measured:
    draws = range(_draws(lab))
    components = []
    for seed in draws:
        fit = _halves(lab, seed)[0]
        first = CCS(loss="midpoint", h=0.0).fit(fit).weight_
        components.append(agreeing_h(fit, first[None], torch.tensor(GRID))[0])
    return Measured.mean([lab.once(_agreement, seed)[0][0] for seed in draws], control=components)


@study.finding(
    "with the h that is best on labelled pairs it does no worse on other pairs: accuracy less that of CCS",
    at_least=0.0,
    control="a random direction's accuracy less that of CCS",
    given=ccs_finds_the_truth,
)
def a_better_h_does_no_worse(lab: Lab) -> Measured:
    rows = lab.once(_accuracies)
    return Measured.mean(rows["best h"] - rows["ccs"], control=rows["random"] - rows["ccs"])


@study.finding(
    "and hardly worse with h = 0.9, for which no label was looked at: accuracy less that of CCS",
    at_least=-0.02,
    control="a random direction's accuracy less that of CCS",
    given=ccs_finds_the_truth,
)
def without_labels_it_does_hardly_worse(lab: Lab) -> Measured:
    rows = lab.once(_accuracies)
    return Measured.mean(rows["h = 0.9"] - rows["ccs"], control=rows["random"] - rows["ccs"])


@study.finding(
    "the direction in which pairs differ most is not the truth: accuracy of CCS less that of this component",
    at_least=0.15,
    control="accuracy of a random direction less that of this component",
    given=ccs_finds_the_truth,
)
def the_first_component_is_not_it(lab: Lab) -> Measured:
    rows = lab.once(_accuracies)
    return Measured.mean(rows["ccs"] - rows["component"], control=rows["random"] - rows["component"])


@study.finding(
    "in the model CCS tells which of a statement and its negation is true, on statements of other cities",
    at_least=0.9,
    control="the same architecture with fresh weights",
)
def ccs_reads_the_models_truth(lab: Lab) -> Measured:
    """At the layer with the lowest loss on the pairs of the fit; labels decide the sign alone, for both."""
    return _reads(lab, "ccs")


@study.finding(
    "and so does midpoint-displacement with h = 0.9, without labels but for the sign",
    at_least=0.9,
    control="the same architecture with fresh weights",
)
def midpoint_reads_the_models_truth(lab: Lab) -> Measured:
    return _reads(lab, "midpoint")


@study.figure("Planted pairs: accuracy of midpoint-displacement against h, label-free, beside CCS and the controls")
def accuracy_by_h(lab: Lab):
    rows = lab.once(_accuracies)
    ours = []
    for h in GRID:
        pairs = [_halves(lab, seed) for seed in range(_draws(lab))]
        ours.append(sum(_right(CCS(loss="midpoint", h=h), *p) for p in pairs) / len(pairs))
    flat = {name: [float(rows[name].mean())] * len(GRID) for name in ("ccs", "best h", "h = 0.9", "component")}
    return views.lines(
        list(GRID),
        {"midpoint-displacement": ours, **flat},
        control=[float(rows["random"].mean())] * len(GRID),
        control_label="random direction",
        title="accuracy by h",
        x_title="h",
        y_title="accuracy",
    )


# ── planted pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _draws(lab: Lab) -> int:
    return 10 if lab.full else 5


def _planted(lab: Lab, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs [row, 2, d] and which side is true: +truth against -truth, a distractor drawn anew for each side, noise."""
    generator = torch.Generator().manual_seed(1000 * lab.seed + seed)
    axes, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))
    y = (torch.rand(PAIRS, generator=generator) < 0.5).double()
    sides = torch.stack([2 * y - 1, 1 - 2 * y], 1)
    loud = 2 * torch.randn(PAIRS, 2, generator=generator, dtype=torch.float64)
    noise = NOISE * torch.randn(PAIRS, 2, WIDTH, generator=generator, dtype=torch.float64)
    return 0.5 * sides[..., None] * axes[0] + loud[..., None] * axes[1] + noise, y


def _halves(lab: Lab, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pairs, y = _planted(lab, seed)
    half = len(y) // 2
    return pairs[:half], y[:half], pairs[half:], y[half:]


def _right(probe: CCS, fit: Tensor, labels: Tensor, test: Tensor, answers: Tensor) -> float:
    return float(probe.fit(fit, labels).score(test, answers))


def _accuracies(lab: Lab) -> dict[str, Tensor]:
    """Accuracy on pairs of the other half, by draw; the sign is taken from the labels of the fit, for all alike."""
    found: dict[str, list[float]] = {}
    for seed in lab.progress(range(_draws(lab)), "planted pairs"):
        fit, labels, test, answers = _halves(lab, seed)
        random, another, third = (CCS(seed=part + seed, steps=0).fit(fit, labels) for part in (100, 300, 200))
        directions = {"ccs": CCS(seed=seed, steps=0 if lab.untrained else 500).fit(fit, labels)}
        directions["best h"] = CCS(loss="midpoint", h=accurate_h(fit, labels)).fit(fit, labels)
        directions["h = 0.9"] = CCS(loss="midpoint", h=0.9).fit(fit, labels)
        directions["component"] = CCS(loss="midpoint", h=0.0).fit(fit, labels)
        directions |= {"random": random, "another random": another}
        if lab.untrained:
            directions |= {"best h": third, "h = 0.9": third}
        for name, probe in directions.items():
            found.setdefault(name, []).append(float(probe.score(test, answers)))
    return {name: torch.tensor(values) for name, values in found.items()}


def _agreement(lab: Lab, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """The h of midpoint-displacement that agrees best with 20 probes of CCS, and how well; the same for random ones."""
    fit = _halves(lab, seed)[0]
    steps = 0 if lab.untrained else 500
    probes = CCS(tries=20, steps=steps, seed=seed).fit(fit).every_
    random = CCS(tries=20, steps=0, seed=100 + seed).fit(fit).every_
    return agreeing_h(fit, probes, torch.tensor(GRID)), agreeing_h(fit, random, torch.tensor(GRID))


# ── a model's statements ──────────────────────────────────────────────────────────────────────────────────────────────


def _statements() -> tuple[list[tuple[str, str]], Tensor, Tensor]:
    """Statements with their negations, whether the plain one is true, and the number of the city of each."""
    texts, true, cities = [], [], []
    for number, city in enumerate(world.CAPITALS):
        home = world.answers()[city, "country"]
        others = [country for country in world.COUNTRIES if country != home]
        for phrasing in range(len(knowledge.STATEMENTS)):
            for said in (home, others[(7 * number + phrasing) % len(others)]):
                texts.append(tuple(knowledge.unanswered(city, said, no, phrasing).text for no in (False, True)))
                true.append(float(said == home))
                cities.append(number)
    return texts, torch.tensor(true), torch.tensor(cities)


def _states(lab: Lab, fresh: bool) -> Tensor:
    """[layer, statement, side, d] the stream at the last token."""
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since its statements are text")
    model, texts = lab.fresh(3) if fresh else lab.model, _statements()[0]
    return torch.stack([_last(model, [pair[side] for pair in texts]) for side in (0, 1)], -2)


def _reads(lab: Lab, loss: Literal["ccs", "midpoint"]) -> Measured:
    """Right or wrong on each statement about cities that were not in the fit, over one half of the cities or three."""
    seeds = range(lab.seed, lab.seed + (3 if lab.full else 1))
    ours, control = (torch.cat([_right_in(lab, loss, fresh, seed) for seed in seeds]) for fresh in (False, True))
    return Measured.share(ours, control=control)


def _right_in(lab: Lab, loss: Literal["ccs", "midpoint"], fresh: bool, seed: int) -> Tensor:
    _, y, cities = _statements()
    order = torch.randperm(len(world.CAPITALS), generator=torch.Generator().manual_seed(seed))
    fit, pairs = torch.isin(cities, order[: len(order) // 2]), lab.once(_states, fresh)
    probe = CCS(loss=loss, seed=seed).fit(pairs[:, fit], y[fit])
    layer = int(probe.loss_.argmin())
    return (probe.predict(pairs[:, ~fit])[layer] == y[~fit]).double()


def _last(model: Model, texts: list[str]) -> Tensor:
    """Float[layer, text, d]: the stream at the last token."""
    parts = [texts[first : first + 64] for first in range(0, len(texts), 64)]
    runs = [model.run(part, record="resid_post.*", positions=-1, stop=True) for part in parts]
    return torch.cat([run["resid_post.*"][:, :, 0] for run in runs], 1)
