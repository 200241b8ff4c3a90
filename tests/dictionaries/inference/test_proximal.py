from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from patchclamp.dictionaries.inference import fista, ista
from patchclamp.dictionaries.inference.proximal import duality_gap, lipschitz, objective


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(width=24, d=12, rows=20, seed=0):
    return torch.nn.functional.normalize(draw(width, d, seed=seed), dim=1), draw(rows, d, seed=seed + 100)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(24, 12), (60, 10)])  # by the Gram matrix, and by two products
def test_the_codes_are_those_of_coordinate_descent(shape, signed):
    decoder, x = (t.double() for t in problem(*shape))
    found = fista(decoder, x, 0.2, signed=signed, tolerance=1e-11)
    for row, z in zip(x, found.codes.dense(), strict=True):
        peer = Lasso(alpha=0.2 / shape[1], fit_intercept=False, positive=not signed, tol=1e-12, max_iter=100000)
        peer.fit(decoder.T.numpy(), row.numpy())
        assert np.abs(peer.coef_ - z.numpy()).max() < 1e-4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 20), st.floats(0.01, 1.0), st.booleans())
def test_the_gap_is_a_certificate(seed, width, d, l1, signed):
    """What is still above the minimum is never more than the gap says, at any point on the way."""
    decoder, x = (t.double() for t in problem(width, d, 5, seed))
    best = objective(
        decoder, x, fista(decoder, x, l1, signed=signed, tolerance=1e-8, iterations=5000).codes.dense(), l1
    )
    size = (x**2).sum(1) / 2
    for z in (torch.zeros(5, width).double(), draw(5, width, seed=seed).double().abs()):
        gap = duality_gap(decoder, x, z, l1, signed) * size
        assert (objective(decoder, x, z, l1) - best <= gap * (1 + 1e-9) + 1e-9).all()


def test_at_the_optimum_correlations_equal_the_penalty_where_a_code_is_on_and_stay_below_elsewhere():
    decoder, x = (t.double() for t in problem())
    z = fista(decoder, x, 0.1, tolerance=1e-10).codes.dense()
    slope = (x - z @ decoder) @ decoder.T
    assert (slope[z > 0] - 0.1).abs().max() < 1e-4 and slope[z == 0].max() < 0.1 + 1e-4


def test_momentum_saves_iterations_and_ista_never_rises():
    decoder, x = (t.double() for t in problem(24, 12, 50))
    slow, fast = (way(decoder, x, 0.1, tolerance=1e-3) for way in (ista, fista))
    assert fast.iterations.float().mean() < 0.5 * slow.iterations.float().mean()
    assert max(float(slow.gap.max()), float(fast.gap.max())) <= 1e-3
    with pytest.warns(UserWarning, match="did not reach"):
        values = [
            objective(decoder, x, ista(decoder, x, 0.1, tolerance=0, iterations=n).codes.dense(), 0.1)
            for n in (1, 5, 20, 80)
        ]
    assert all((after <= before + 1e-6).all() for before, after in pairwise(values))


def test_a_row_does_not_depend_on_its_batch_and_a_start_at_the_solution_is_done_at_once():
    decoder, x = problem(rows=30)
    whole, alone = fista(decoder, x, 0.1), fista(decoder, x[7:8], 0.1)
    assert torch.allclose(whole.codes.dense()[7], alone.codes.dense()[0], atol=1e-6)
    again = fista(decoder, x, 0.1, start=whole.codes)
    assert (again.iterations == 10).all()


def test_stopping_by_support_is_sooner_and_has_nearly_the_same_support():
    decoder, x = problem(48, 12, 100)
    sure, soon = fista(decoder, x, 0.1), fista(decoder, x, 0.1, stop="support")
    assert soon.iterations.sum() < sure.iterations.sum()
    same = (soon.codes.dense() != 0) == (sure.codes.dense() != 0)
    assert same.float().mean() > 0.95


def test_zero_rows_and_penalties_above_every_correlation_give_zero_codes():
    decoder, x = problem()
    assert (fista(decoder, torch.zeros_like(x), 0.1).codes.values == 0).all()
    assert (fista(decoder, x, float((x @ decoder.T).max()) + 0.1).codes.values == 0).all()


def test_the_step_comes_from_the_spectral_norm():
    decoder, _ = problem()
    assert lipschitz(decoder) == pytest.approx(float(torch.linalg.matrix_norm(decoder, 2)) ** 2, rel=1e-5)


def test_wrong_arguments_say_what_is_expected():
    decoder, x = problem()
    with pytest.raises(ValueError, match="try a tenth"):
        fista(decoder, x, 0.0)
    with pytest.raises(ValueError, match=r"\[width, d\]"):
        fista(decoder, x[:, :5], 0.1)
    with pytest.raises(ValueError, match="float64"):
        fista(decoder, x.double(), 0.1)
    with pytest.raises(ValueError, match="finite"):
        fista(decoder, x * torch.nan, 0.1)
    with pytest.raises(ValueError, match="no rows"):
        fista(decoder, x[:0], 0.1)
