import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from patchclamp.dictionaries import Codes
from patchclamp.dictionaries.inference import gradient_pursuit, omp
from patchclamp.dictionaries.inference.pursuit import nonnegative_least_squares


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(width, d, seed=0):
    return torch.nn.functional.normalize(draw(width, d, seed=seed), dim=1)


def explained(codes: Codes, decoder):
    return codes.dense() @ decoder


def test_signed_codes_are_those_of_another_library():
    decoder, x = unit(40, 16).double(), draw(30, 16, seed=1).double()
    ours = omp(decoder, x, 5, signed=True).codes.dense()
    theirs = orthogonal_mp(decoder.T.numpy(), x.T.numpy(), n_nonzero_coefs=5).T
    assert np.abs(ours.numpy() - theirs).max() < 1e-8


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 30), st.integers(2, 12), st.integers(1, 8))
def test_values_are_the_non_negative_least_squares_of_what_was_chosen(seed, width, d, k):
    decoder, x, k = unit(width, d, seed).double(), draw(6, d, seed=seed + 1).double(), min(k, width)
    codes = omp(decoder, x, k).codes
    for row, indices, values in zip(x, codes.indices, codes.values, strict=True):
        assert len(set(indices.tolist())) == len(indices) and (values >= 0).all()
        _, best = nnls(decoder[indices[values > 0]].T.numpy(), row.numpy()) if (values > 0).any() else (0, row.norm())
        assert float((row - values @ decoder[indices]).norm()) == pytest.approx(float(best), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_active_sets_find_the_optimum_whatever_they_begin_from(seed, k):
    atoms, x = draw(4, k, 7, seed=seed).double(), draw(4, 7, seed=seed + 1).double()
    gram, right = atoms @ atoms.mT, (atoms @ x[..., None])[..., 0]
    free = torch.ones(4, k, dtype=torch.bool)
    for start in (torch.zeros(4, k).double(), torch.rand(4, k, generator=torch.Generator().manual_seed(seed)).double()):
        z = nonnegative_least_squares(gram, right, start, free)
        for row in range(4):
            peer, _ = nnls(atoms[row].T.numpy(), x[row].numpy())
            ours, theirs = (x[row] - torch.as_tensor(c) @ atoms[row] for c in (z[row], peer))
            assert float(ours.norm()) == pytest.approx(float(theirs.norm()), abs=1e-7)


def test_orthogonal_atoms_are_found_exactly_in_the_order_of_their_size():
    decoder = torch.linalg.qr(draw(12, 12))[0]
    true = torch.zeros(5, 12)
    true[:, 3], true[:, 7], true[:, 1] = 3.0, 2.0, 1.0
    for way in (omp, gradient_pursuit):
        codes = way(decoder, true @ decoder, 3).codes
        assert codes.indices[:, :3].tolist() == [[3, 7, 1]] * 5
        assert torch.allclose(codes.dense(), true, atol=1e-5)


def test_more_atoms_explain_more_and_least_squares_more_than_a_step():
    decoder, x = unit(64, 16), draw(200, 16, seed=1)
    left = {
        way: [float(((x - explained(way(decoder, x, k).codes, decoder)) ** 2).sum()) for k in (1, 2, 4, 8)]
        for way in (omp, gradient_pursuit)
    }
    for values in left.values():
        assert values == sorted(values, reverse=True)
    assert all(a <= b + 1e-3 for a, b in zip(left[omp], left[gradient_pursuit], strict=True))


def test_scale_of_atoms_dead_atoms_and_copies_change_nothing_that_is_explained():
    decoder, x = unit(20, 8), draw(50, 8, seed=1)
    plain = explained(omp(decoder, x, 4).codes, decoder)
    scaled = decoder * torch.linspace(0.1, 5, 20)[:, None]
    assert torch.allclose(explained(omp(scaled, x, 4).codes, scaled), plain, atol=1e-4)
    more = torch.cat([decoder, torch.zeros(2, 8), decoder[:3]])
    assert torch.allclose(explained(omp(more, x, 4).codes, more), plain, atol=1e-4)


def test_a_row_that_is_explained_takes_no_more_atoms():
    decoder = unit(20, 8)
    x = torch.stack([torch.zeros(8), decoder[4], decoder[4] + decoder[9]])
    found = omp(decoder, x, 6, tolerance=1e-4)
    assert found.codes.l0().tolist()[:2] == [0, 1] and found.iterations.tolist()[:2] == [0, 1]
    assert torch.allclose(explained(found.codes, decoder), x, atol=1e-3)
    nothing = omp(decoder, torch.zeros(3, 8), 6).codes
    assert nothing.values.tolist() == [[0.0]] * 3


def test_blocks_of_rows_do_not_matter(monkeypatch):
    decoder, x = unit(50, 8), draw(300, 8, seed=1)
    x[:70] = 0  # a block that needs fewer columns than the others
    whole = omp(decoder, x, 5).codes.dense()
    monkeypatch.setattr("patchclamp.dictionaries.inference.solution.BLOCK", 1)
    assert torch.allclose(omp(decoder, x, 5).codes.dense(), whole, atol=1e-5)


def test_k_must_fit():
    with pytest.raises(ValueError, match="k=30 of 20"):
        omp(unit(20, 8), draw(3, 8), 30)
