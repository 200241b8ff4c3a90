"""Matching pursuit: its identities, beside a loop that follows the definition row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.dictionaries.pursuit import matching_pursuit, merged, steps


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(*shape, seed=0, dtype=torch.float32):
    return torch.nn.functional.normalize(draw(*shape, seed=seed, dtype=dtype), dim=1)


def by_definition(row, atoms, k):
    """Dense values of one row."""
    values, left = torch.zeros(len(atoms), dtype=row.dtype), row.clone()
    for _ in range(k):
        products = torch.stack([left @ atom for atom in atoms])
        best = int(products.abs().argmax())
        values[best] += products[best]
        left = left - products[best] * atoms[best]
    return values


@pytest.mark.parametrize("k", [1, 3, 7])
def test_it_is_matching_pursuit(k):
    x, atoms = draw(12, 5, dtype=torch.float64), unit(9, 5, seed=1, dtype=torch.float64)
    found = matching_pursuit(x, atoms, k)
    expected = torch.stack([by_definition(row, atoms, k) for row in x])
    assert torch.allclose(found.codes.dense(), expected)
    assert torch.allclose(found.residual, x - expected @ atoms)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 40), st.integers(2, 200))
def test_energy_is_kept_and_what_is_left_never_grows(seed, k, width, d):
    k = min(k, width)
    x, atoms = draw(20, d, seed=seed) * 3, unit(width, d, seed=seed + 1)
    found = matching_pursuit(x, atoms, k)
    whole = (x**2).sum(1)
    assert torch.allclose(found.energy.sum(1) + (found.residual**2).sum(1), whole, rtol=1e-4)
    left = whole[:, None] - found.energy.cumsum(1)
    assert bool((left.diff(dim=1) <= 0).all())
    assert torch.allclose(found.codes.dense() @ atoms + found.residual, x, atol=1e-4)
    assert bool((found.codes.indices.sort(1).values.diff(dim=1) > 0).all())  # no latent twice


def test_products_between_atoms_change_nothing():
    x, atoms = draw(40, 160), unit(60, 160, seed=1)
    with_products, without = matching_pursuit(x, atoms, 8), steps(x, atoms, 8)
    assert torch.allclose(with_products.residual, without[2], atol=1e-5)


def test_rows_of_few_orthogonal_atoms_are_found_exactly():
    atoms = torch.linalg.qr(draw(16, 16, dtype=torch.float64)).Q
    values = torch.zeros(10, 16, dtype=torch.float64)
    values.scatter_(1, torch.stack([torch.randperm(16)[:4] for _ in range(10)]), draw(10, 4, dtype=torch.float64))
    found = matching_pursuit(values @ atoms, atoms, 4)
    assert torch.allclose(found.codes.dense(), values) and float(found.residual.abs().max()) < 1e-12


def test_gradients_flow_through_values():
    x = draw(4, 6, dtype=torch.float64).requires_grad_()
    atoms = unit(12, 6, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: matching_pursuit(x, atoms, 3).codes.values, x)


def test_an_atom_taken_twice_has_one_value():
    codes = merged(torch.tensor([[5, 5, 1, 5], [0, 1, 0, 1], [1, 2, 3, 4]]), torch.ones(3, 4), width=6)
    assert codes.indices.tolist() == [[5, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    assert codes.values.tolist() == [[3, 0, 1, 0], [2, 2, 0, 0], [1, 1, 1, 1]]
    assert codes.dense().sum() == 12


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"expected \[row, d\] and \[width, d\]"):
        matching_pursuit(draw(3, 4), unit(5, 6), 2)
    with pytest.raises(ValueError, match="k=6 steps over 5 atoms"):
        matching_pursuit(draw(3, 4), unit(5, 4), 6)
    with pytest.raises(ValueError, match="give unit vectors"):
        matching_pursuit(draw(3, 4), 2 * unit(5, 4), 2)
