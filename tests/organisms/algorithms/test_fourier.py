"""The measures of what a network that adds modulo p computes, on logits that were written down."""

import pytest
import torch

from patchclamp.organisms.algorithms.fourier import (
    cosine_shares,
    fourier_basis,
    frequency_norms,
    gini,
    key_frequencies,
)

P = 13


def cosine_table(amplitudes):
    """sum_k amplitude_k cos(w_k (a + b - c)), the algorithm of the paper."""
    number = torch.arange(P)
    difference = (number[:, None, None] + number[:, None] - number).double()
    return sum(size * (2 * torch.pi * k / P * difference).cos() for k, size in amplitudes.items())


def test_the_basis_is_orthonormal_and_keeps_the_norm():
    basis = fourier_basis(113)
    assert (basis @ basis.T - torch.eye(113, dtype=torch.double)).abs().max() < 1e-12
    x = torch.randn(113, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert torch.allclose((basis @ x).norm(), x.norm(), atol=1e-9, rtol=0)


def test_an_even_p_is_refused():
    with pytest.raises(ValueError, match="odd"):
        fourier_basis(12)


def test_frequency_norms_find_the_frequency_of_a_wave():
    number = torch.arange(P)
    rows = torch.stack([(2 * torch.pi * 4 / P * number).cos(), (2 * torch.pi * 4 / P * number).sin()], 1)
    norms = frequency_norms(rows)
    assert norms.argmax() == 3 and norms[3] ** 2 == pytest.approx(P) and norms.sum() == pytest.approx(float(norms[3]))


def test_shares_are_those_of_the_squared_amplitudes():
    shares = cosine_shares(cosine_table({2: 3.0, 5: 1.0}))
    assert shares.sum() == pytest.approx(1.0)
    assert shares[1] == pytest.approx(0.9) and shares[4] == pytest.approx(0.1)
    assert key_frequencies(shares).tolist() == [2, 5]


def test_what_does_not_depend_on_the_answer_does_not_count():
    table = cosine_table({2: 1.0})
    offset = torch.randn(P, P, 1, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(cosine_shares(table + offset), cosine_shares(table))


def test_other_functions_of_the_same_frequency_do_not_count():
    number = torch.arange(P)
    difference = (number[:, None, None] + number[:, None] - number).double()
    assert cosine_shares((2 * torch.pi * 3 / P * difference).sin()).max() < 1e-12
    minus = (number[:, None, None] - number[:, None] - number).double()
    assert cosine_shares((2 * torch.pi * 3 / P * minus).cos()).max() < 1e-12


def test_noise_is_not_explained():
    table = torch.randn(P, P, P, generator=torch.Generator().manual_seed(0))
    assert cosine_shares(table).sum() < 0.02


def test_gini_of_equal_values_is_zero():
    assert gini(torch.ones(7)) == pytest.approx(0.0)
    assert gini(torch.tensor([1.0, 3.0])) == pytest.approx(0.25)
