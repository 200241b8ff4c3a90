"""k-sparse probes find planted neurons from the rows they are given, and from no others."""

import pytest
import torch

from patchclamp.organisms import planted
from patchclamp.probes import KSparse, measures


@pytest.fixture(scope="module")
def world():
    return planted.neurons(width=128)


@pytest.mark.parametrize("selector", ["mean", "f", "mutual_information", "l1", "adaptive", "optimal"])
def test_the_support_is_the_planted_one(world, selector):
    batch = world.sample(1500, seed=0)
    probe = KSparse(3, selector=selector).fit(batch.activations, batch.fires[:, 0])
    assert set(probe.support_.tolist()) == set(world.truth().directions[0, 0].nonzero()[:, 0].tolist())
    assert set(probe.probe_.weight.nonzero()[:, 0].tolist()) == set(probe.support_.tolist())
    fresh = world.sample(1000, seed=1)
    assert measures.f1(probe.decision_function(fresh.activations), fresh.fires[:, 0]) > 0.85


def test_units_are_chosen_for_each_label_at_each_site(world):
    batch = world.sample(600, seed=0)
    x = torch.stack([batch.activations, batch.activations.roll(5, dims=1)])
    y = batch.fires[:, :2]
    support = KSparse(1, selector="f").fit(x, y).support_
    assert support.shape == (2, 2, 1)
    assert ((support[0] + 5) % 128 == support[1]).all()


def test_noise_is_not_read_on_rows_that_were_not_chosen_by():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 5000, generator=generator), (torch.rand(200, generator=generator) > 0.5).float()
    probe = KSparse(8, selector="f").fit(x[:100], y[:100])
    assert measures.auc(probe.decision_function(x[:100]), y[:100]) > 0.85
    assert abs(float(measures.auc(probe.decision_function(x[100:]), y[100:])) - 0.5) < 0.15


def test_the_gap_of_the_best_subset_is_reported(world):
    batch = world.sample(300, seed=0)
    assert KSparse(2, selector="optimal").fit(batch.activations, batch.fires[:, 0]).gap_ == 0.0


def test_a_misspelt_selector_is_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mutual_information'"):
        KSparse(2, selector="mutual_info")
    with pytest.raises(ValueError, match="k=9 of 4 units"):
        KSparse(9).fit(torch.randn(8, 4), torch.tensor([0, 1] * 4))
