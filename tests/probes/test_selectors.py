"""Planted neurons are found, by every selector, and scores agree with scikit-learn where it has them."""

import pytest
import torch
from sklearn.feature_selection import f_classif, mutual_info_classif

from patchclamp.organisms import planted
from patchclamp.probes.selectors import SELECTORS, random


@pytest.fixture(scope="module")
def rows():
    world = planted.neurons(width=128, seed=3)
    batch = world.sample(1500, seed=0)
    support = set(world.truth().directions[0, 0].nonzero()[:, 0].tolist())
    return batch.activations.double()[None], batch.fires[:, :1].double()[None], support


@pytest.mark.parametrize("name", SELECTORS)
def test_the_planted_neurons_come_first(rows, name):
    x, y, support = rows
    scores = SELECTORS[name](x, y, torch.ones_like(y), 3)
    assert set(scores[0, 0].topk(3).indices.tolist()) == support


def test_random_units_are_random_and_seeded(rows):
    x, y, support = rows
    draws = [set(random(seed)(x, y, torch.ones_like(y), 3)[0, 0].topk(3).indices.tolist()) for seed in range(20)]
    assert sum(len(one & support) for one in draws) <= 6
    assert torch.equal(random(1)(x, y, torch.ones_like(y)), random(1)(x, y, torch.ones_like(y)))


def test_f_is_that_of_scikit_learn(rows):
    x, y, _ = rows
    theirs, _ = f_classif(x[0].numpy(), y[0, :, 0].numpy())
    assert SELECTORS["f"](x, y, torch.ones_like(y))[0, 0].tolist() == pytest.approx(theirs.tolist())


def test_mutual_information_is_near_that_of_nearest_neighbours(rows):
    x, y, _ = rows
    best = SELECTORS["mutual_information"](x, y, torch.ones_like(y))[0, 0].topk(10).indices
    ours = SELECTORS["mutual_information"](x, y, torch.ones_like(y))[0, 0, best]
    theirs = mutual_info_classif(x[0, :, best].numpy(), y[0, :, 0].numpy(), random_state=0)
    assert (ours - torch.tensor(theirs)).abs().max() < 0.04


def test_mutual_information_of_a_copy_is_the_entropy_of_the_label():
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(1, 4000, 1, generator=generator) < 0.3).double()
    x = torch.cat([y, torch.rand(1, 4000, 1, generator=generator)], -1)
    share = float(y.mean())
    entropy = -torch.special.xlogy(torch.tensor([share, 1 - share]), torch.tensor([share, 1 - share])).sum()
    scores = SELECTORS["mutual_information"](x, y, torch.ones_like(y))[0, 0]
    assert float(scores[0]) == pytest.approx(float(entropy), abs=1e-3) and abs(float(scores[1])) < 0.005
