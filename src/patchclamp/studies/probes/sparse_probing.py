"""Finding neurons in a haystack: case studies with sparse probing (Gurnee et al. 2023).

A probe that may read k neurons says whether a feature is in few neurons or in many: its score rises until k reaches the
number of neurons that hold the feature. Selectors that find them are told from chance on planted neurons; features in
superposition are read badly from one neuron and well from many; and single neurons of a language model know what kind
of text they are in. Which neurons are chosen is part of the fit: chosen with a look at the test, noise scores well.
"""

import itertools

import numpy as np
import torch
from torch import Tensor

from patchclamp import views
from patchclamp.model import Model
from patchclamp.organisms import planted
from patchclamp.organisms.tales import grammar
from patchclamp.positions import span
from patchclamp.probes import SELECTORS, KSparse, best_subset, measures
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="sparse-probing",
    paper="Finding Neurons in a Haystack: Case Studies with Sparse Probing (arXiv:2305.01610)",
    seed="002_c890b7b323703807.txt",
    organism="tales",
)

PLANTED = 3
KS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32)
KINDS = ("spanish", "parallel", "story", "life", "sentiment", "genre")


@study.identity("the proven best support is that of trying every support of 18 neurons", tolerance=1e-9)
def exact_is_brute_force(lab: Lab) -> Measured:
    from patchclamp.probes.best_subset import _branch_and_bound, _Quadratic, _swapped

    found, brute = [], []
    for seed in range(3):
        batch = _world(lab, seed).sample(400, seed=seed)
        x, y = batch.activations[:, :18], batch.fires[:, 0].float()
        problem = _Quadratic.of(x.double(), y.double()[:, None], torch.ones(len(y), 1).double())
        found.append(_branch_and_bound(problem, 4, *_swapped(problem, 4), 10**6)[1])
        brute.append(min(problem(support) for support in itertools.combinations(range(18), 4)))
        found.append(best_subset(x, y, torch.ones(len(y)), 4).objective)
        brute.append(brute[-1])
    return Measured.gap(found, brute)


@study.finding(
    "every selector finds the neurons that know the label, among distractors that go with it",
    at_least=0.95,
    control="as many neurons drawn at random",
)
def selectors_find_the_planted_neurons(lab: Lab) -> Measured:
    """Share of the planted neurons among the three chosen, by selector and draw."""
    recalls, random = [], []
    for seed in range(_draws(lab)):
        x, y, _, _, support = _rows(lab, seed)
        names = [_selector(lab, name) for name in (*SELECTORS, "optimal")]
        recalls += [_recall(KSparse(PLANTED, selector=name, seed=seed).fit(x, y), support) for name in names]
        others = [KSparse(PLANTED, selector="random", seed=100 * seed + i) for i in range(len(names))]
        random += [_recall(probe.fit(x, y), support) for probe in others]
    return Measured.mean(recalls, control=random)


@study.finding(
    "F1 rises up to as many neurons as hold the feature: from one to three",
    at_least=0.1,
    control="from three to eight",
    given=selectors_find_the_planted_neurons,
)
def it_rises_to_the_knee(lab: Lab) -> Measured:
    curves = lab.once(_curves)
    return Measured.mean(curves[:, KS.index(3)] - curves[:, 0], control=curves[:, KS.index(8)] - curves[:, KS.index(3)])


@study.finding(
    "and stays there: F1 from three to eight",
    at_most=0.02,
    control="from one to three",
    given=selectors_find_the_planted_neurons,
)
def it_stays_behind_the_knee(lab: Lab) -> Measured:
    curves = lab.once(_curves)
    return Measured.mean(curves[:, KS.index(8)] - curves[:, KS.index(3)], control=curves[:, KS.index(3)] - curves[:, 0])


@study.finding(
    "a feature in superposition is not in one neuron: F1 of the best one",
    at_most=0.65,
    control="F1 of 32 neurons",
    given=selectors_find_the_planted_neurons,
)
def one_neuron_reads_little_of_superposition(lab: Lab) -> Measured:
    curves = lab.once(_superposed)
    return Measured.mean(curves[:, 0], control=curves[:, -1])


@study.finding(
    "but it is in many: F1 of 32 neurons less that of one",
    at_least=0.2,
    control="the same with shuffled labels",
    given=selectors_find_the_planted_neurons,
)
def many_neurons_read_superposition(lab: Lab) -> Measured:
    curves, shuffled = lab.once(_superposed), lab.once(_superposed, True)
    return Measured.mean(curves[:, -1] - curves[:, 0], control=shuffled[:, -1] - shuffled[:, 0])


@study.finding(
    "shuffled labels are read no better than by saying yes always: F1 less the F1 of that",
    at_most=0.0,
    control="the true labels",
    given=selectors_find_the_planted_neurons,
)
def shuffled_labels_are_not_read(lab: Lab) -> Measured:
    true, shuffled = [], []
    for seed in range(_draws(lab)):
        x, y, fresh, answers, _ = _rows(lab, seed)
        always = float(measures.f1(torch.ones_like(answers), answers))
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        for found, labels in ((true, y), (shuffled, y[order])):
            probe = KSparse(PLANTED, selector=_selector(lab, "f"), seed=seed).fit(x, labels)
            found.append(float(measures.f1(probe.decision_function(fresh), answers)) - always)
    return Measured.mean(shuffled, control=true)


@study.finding(
    "neurons of noise, chosen from the rows of the fit alone, read nothing: accuracy on other rows",
    at_most=0.6,
    control="chosen with a look at the rows of the test",
)
def choosing_is_part_of_the_fit(lab: Lab) -> Measured:
    """5000 neurons of noise, 200 rows, half of them for the test, eight neurons chosen."""
    honest, leaked = [], []
    for seed in range(2 * _draws(lab)):
        generator = torch.Generator().manual_seed(1000 * lab.seed + seed)
        x = torch.randn(200, 5000, generator=generator)
        y = (torch.arange(200) % 2).float()[torch.randperm(200, generator=generator)]
        probe = KSparse(8, selector=_selector(lab, "f"), seed=seed)
        honest.append(probe.fit(x[:100], y[:100]).score(x[100:], y[100:]))
        seen = x[:, torch.as_tensor(probe.fit(x, y).support_)]
        leaked.append(KSparse(8, selector="f").fit(seen[:100], y[:100]).score(seen[100:], y[100:]))
    return Measured.mean(honest, control=leaked)


@study.finding(
    "one neuron of the model knows the kind of text, at a full stop: F1 on documents that it was not chosen by",
    at_least=0.8,
    control="one neuron of the same architecture with fresh weights",
)
def single_neurons_know_the_kind_of_text(lab: Lab) -> Measured:
    """By kind of text and draw of documents, at the layer that is best on the rows of the fit."""
    return Measured.mean(lab.once(_neurons, "own"), control=lab.once(_neurons, "fresh"))


@study.figure("F1 against the number of neurons: a feature in three neurons, and one in superposition")
def curves(lab: Lab):
    shown = {"in three neurons": lab.once(_curves).mean(0), "in superposition": lab.once(_superposed).mean(0)}
    return views.lines(
        list(KS),
        {name: row.tolist() for name, row in shown.items()},
        control=lab.once(_superposed, True).mean(0).tolist(),
        control_label="in superposition, shuffled labels",
        title="F1 by number of neurons",
        x_title="neurons",
        y_title="F1 on other rows",
    )


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


def _draws(lab: Lab) -> int:
    return 8 if lab.full else 4


def _selector(lab: Lab, name: str) -> str:
    """A probe that is left as it was before its fit has neurons drawn at random."""
    return "random" if lab.untrained else name


def _world(lab: Lab, seed: int) -> planted.Planted:
    return planted.neurons(width=512, support=PLANTED, seed=1000 * lab.seed + seed)


def _rows(lab: Lab, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, set[int]]:
    """2000 rows with labels, 2000 others, and the neurons that know the label."""
    world = _world(lab, seed)
    fit, test = world.sample(2000, seed=2 * seed), world.sample(2000, seed=2 * seed + 1)
    support = set(world.truth().directions[0, 0].nonzero()[:, 0].tolist())
    return fit.activations, fit.fires[:, 0].float(), test.activations, test.fires[:, 0].float(), support


def _recall(probe: KSparse, support: set[int]) -> float:
    return len(support & set(probe.support_.tolist())) / len(support)


def _curve(lab: Lab, x: Tensor, y: Tensor, fresh: Tensor, answers: Tensor, seed: int) -> list[float]:
    decisions = [KSparse(k, selector=_selector(lab, "f"), seed=seed).fit(x, y).decision_function(fresh) for k in KS]
    return [float(measures.f1(decision, answers)) for decision in decisions]


def _curves(lab: Lab) -> np.ndarray:
    """F1 by draw and k, on planted neurons."""
    rows = [_rows(lab, seed) for seed in range(_draws(lab))]
    return np.array([_curve(lab, *row[:4], seed) for seed, row in enumerate(lab.progress(rows, "k-curves"))])


def _superposed(lab: Lab, shuffle: bool = False) -> np.ndarray:
    """F1 by feature and k, where 256 features share 64 neurons."""
    found = []
    for seed in range(_draws(lab)):
        world = planted.superposition(features=256, width=64, active=8, power=0.0, seed=1000 * lab.seed + seed)
        world = planted.Planted(64, (0.3, *world.probabilities[1:]), seed=world.seed)
        fit, test = world.sample(3000, seed=2 * seed), world.sample(3000, seed=2 * seed + 1)
        y = fit.fires[:, 0].float()
        if shuffle:
            y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
        found.append(_curve(lab, fit.activations, y, test.activations, test.fires[:, 0].float(), seed))
    return np.array(found)


def _neurons(lab: Lab, which: str) -> list[float]:
    """F1 of one neuron for each kind of text: read at a full stop, which says nothing of the kind itself."""
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since what it reads is text")
    lab.need("mlp_post.0" in map(str, lab.model.sites()), "a model with MLP neurons (mlp_post)")
    model = lab.model if which == "own" else lab.fresh(7)
    found: list[float] = []
    for draw in range(3):
        documents = [(kind, d.text) for kind in KINDS for d in grammar.documents(40, 100 * lab.seed + draw, kind)]
        x = _at_full_stop(model, [text for _, text in documents])
        y = torch.tensor([[float(kind == other) for other in KINDS] for kind, _ in documents])
        fit = torch.arange(len(y)) % 2 == 0
        probe = KSparse(1, selector="f").fit(x[:, fit], y[fit])
        shown, other = (
            measures.f1(probe.decision_function(x[:, part]).transpose(1, 2), y[part].T) for part in (fit, ~fit)
        )
        found += other[shown.mean(1).argmax()].tolist()
    return found


def _at_full_stop(model: Model, texts: list[str]) -> Tensor:
    """Float[layer, text, neuron] at the last full stop of each text."""
    found = []
    for first in range(0, len(texts), 64):
        part = texts[first : first + 64]
        run = model.run(part, record="mlp_post.*", positions=span("."), stop=True)
        found.append(run["mlp_post.*"][:, :, 0])
    return torch.cat(found, 1)
