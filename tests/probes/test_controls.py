"""Controls keep what they should and lose the rest; regimes draw what they say."""

import pytest
import torch

from patchclamp.probes import controls, flipped, scarce, shifted
from patchclamp.probes.linear import Ridge


def test_random_activations_have_the_same_moments_and_say_nothing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4000, 3, generator=generator) @ torch.randn(3, 3, generator=generator) + 5
    fake = controls.random_like(x, seed=1)
    assert torch.allclose(fake.mean(1), x.mean(1), atol=0.3)
    assert torch.allclose(torch.cov(fake[1].T), torch.cov(x[1].T), rtol=0.1, atol=0.1)
    y = (x[..., 0] > x[..., 0].mean()).float()
    assert abs(Ridge().fit(fake[0, :2000], y[0, :2000]).score(fake[0, 2000:], y[0, 2000:]) - 0.5) < 0.05


def test_shuffled_labels_stay_in_their_groups():
    y, groups = torch.arange(12.0)[:, None], torch.arange(3).repeat_interleave(4)
    mixed = controls.shuffled(y, seed=0, groups=groups)
    assert sorted(mixed[:4, 0].tolist()) == [0, 1, 2, 3] and not torch.equal(mixed, y)
    assert sorted(controls.shuffled(y)[:, 0].tolist()) == y[:, 0].tolist()


def test_a_bag_counts_tokens_that_tell_rows_apart():
    ids = torch.tensor([[5, 7, 7], [5, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    assert controls.bag_of_tokens(ids, mask).tolist() == [[2, 0], [0, 1]]


def test_a_control_task_is_decided_by_the_token():
    ids = torch.tensor([3, 4, 5, 6, 3, 4])
    y = controls.control_task(ids, seed=2)
    assert y[0] == y[4] and y[1] == y[5] and y[:4].sum() == 2


def test_control_numbers_are_decided_by_the_token():
    ids, y = torch.tensor([3, 4, 5, 6, 3, 4]), torch.arange(6.0)[:, None] / 4
    drawn = controls.control_numbers(ids, y, seed=2)
    assert drawn[0] == drawn[4] and drawn[1] == drawn[5] and set(drawn[:, 0].tolist()) <= set(y[:, 0].tolist())


def test_regimes():
    y = torch.tensor([1.0, 0.0] * 50)
    rows = scarce(y, 20, share=0.1, seed=0)
    assert y[rows].tolist() == [1.0] * 2 + [0.0] * 18 and len(set(rows.tolist())) == 20
    assert 10 < float((flipped(y, 0.2) != y).sum()) < 30
    nuisance = torch.tensor([1.0, 0.0, 0.0, 1.0] * 25)
    train, test = shifted(y, nuisance, 20)
    assert torch.equal(y[train], nuisance[train]) and torch.equal(y[test], 1 - nuisance[test])
    with pytest.raises(ValueError, match="there are 50"):
        scarce(y, 200)
