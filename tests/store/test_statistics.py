import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.store import Statistics
from patchclamp.store.statistics import Moments, merged


def rows(n, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.logspace(-2, 3, d) + 100


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any))
def test_parts_add_up_to_the_whole(sizes):
    x = rows(sum(sizes))
    found = Statistics.of(merged([Moments.of(part) for part in x.split(sizes)]))
    x = x.double()
    assert found.count == len(x)
    assert torch.allclose(found.mean, x.mean(0), rtol=1e-12)
    assert torch.allclose(found.variance, x.var(0, correction=0), rtol=1e-9)
    assert torch.allclose(found.std.square(), found.variance)
    norms = x.norm(dim=1)
    assert found.norm_mean == pytest.approx(float(norms.mean()))
    assert found.norm_std == pytest.approx(float(norms.std(correction=0)), abs=1e-6)
    assert found.total_variance == pytest.approx(float((x - x.mean(0)).square().sum(1).mean()))


def test_a_large_mean_does_not_swallow_a_small_variance():
    x = 1e-3 * rows(3000, seed=1) + 1e4
    found = Statistics.of(Moments.of(x))
    assert torch.allclose(found.variance, x.double().var(0, correction=0), rtol=1e-6)


@pytest.mark.parametrize("q", [0, 0.01, 0.5, 0.9, 1])
def test_quantiles_of_norms_are_right_to_one_per_cent(q):
    x = rows(5000)
    exact = float(x.double().norm(dim=1).quantile(q, interpolation="lower"))
    assert Statistics.of(Moments.of(x)).norm_quantile(q) == pytest.approx(exact, rel=0.01)


def test_rows_of_zeros_have_norm_zero():
    assert Statistics.of(Moments.of(torch.zeros(3, 2))).norm_quantile(0.5) == 0


def test_moments_survive_a_file_to_the_bit():
    moments = Moments.of(rows(100))
    back = Moments.from_tensors("a/train", moments.to_tensors("a/train"))
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(vars(moments).values(), vars(back).values(), strict=True)
    )


def test_of_nothing_there_are_none():
    with pytest.raises(ValueError, match="no rows"):
        Statistics.of(Moments.none(3))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Statistics.of(Moments.of(rows(3))).norm_quantile(1.5)
