"""The proven best support is that of trying all."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.probes.best_subset import _branch_and_bound, _Quadratic, _swapped, best_subset


def data(rows, d, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=generator)
    x[:, 1] = x[:, 0] + 0.5 * x[:, 1]  # correlated units mislead greedy choices
    y = (x[:, 0] - x[:, 1] + torch.randn(rows, generator=generator) > 0).float()
    y[:2] = torch.tensor([0.0, 1.0])
    return x, y


@given(d=st.integers(3, 12), k=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_branch_and_bound_finds_what_trying_all_finds(d, k, seed):
    k = min(k, d - 1)
    x, y = data(40, d, seed)
    problem = _Quadratic.of(x.double(), y.double()[:, None], torch.ones(40, 1).double())
    start, value = _swapped(problem, k)
    _, found, bound = _branch_and_bound(problem, k, start, value, 10**6)
    brute = min(problem(support) for support in itertools.combinations(range(d), k))
    assert found == pytest.approx(brute, abs=1e-9) and bound == found
    assert best_subset(x, y, torch.ones(40), k).objective == pytest.approx(brute, abs=1e-9)


def test_the_objective_is_that_of_ridge_regression():
    x, y = data(100, 5, 0)
    problem = _Quadratic.of(x.double(), y.double()[:, None], torch.ones(100, 1).double())
    weights = torch.where(y > 0, 0.5 / y.sum(), 0.5 / (1 - y).sum()).double()
    z = x[:, [0, 3]].double()
    mean = (weights[:, None] * z).sum(0)
    z = (z - mean) / (weights[:, None] * (z - mean) ** 2).sum(0).sqrt()
    w = torch.tensor([0.3, -0.1], dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        loss = (weights * (2 * y - 1 - z @ w) ** 2).sum() + 1e-3 * (w**2).sum()
        (slope,) = torch.autograd.grad(loss, w)
        w = (w - 0.3 * slope).detach().requires_grad_()
    assert problem([0, 3]) == pytest.approx(loss.item(), abs=1e-4)


def test_a_search_that_ends_early_says_how_far_off_it_may_be():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 40, generator=generator), (torch.rand(60, generator=generator) > 0.5).float()
    hasty = best_subset(x, y, torch.ones(60), 8, nodes=50)
    patient = best_subset(x, y, torch.ones(60), 8, nodes=3000)
    assert hasty.gap > 0 and hasty.bound <= patient.bound + 1e-12 and patient.objective <= hasty.objective + 1e-12


def test_more_units_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="k=4 of 3 units"):
        best_subset(*data(10, 3, 0), torch.ones(10), 4)
