"""Stitching planted dictionaries: which latents are new, what inserting does, the way from small to large."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.dictionaries import Dictionary
from patchclamp.dictionaries.stitching import compare, roc, stitch, swap


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_dictionary(width, d=8, seed=0):
    rows = draw(width, d, seed=seed)
    return Dictionary(
        draw(width, d, seed=seed + 1),
        draw(width, seed=seed + 2),
        rows,
        draw(d, seed=seed + 3),
        b_in=draw(d, seed=seed + 4),
        threshold=draw(width, seed=seed + 5).abs(),
    )


X = draw(300, 8, seed=50)


@settings(max_examples=15)
@given(st.integers(0, 10**5), st.floats(-0.5, 0.9))
def test_the_chain_begins_at_the_small_dictionary_and_ends_at_the_large(seed, threshold):
    small, large = random_dictionary(6, seed=seed), random_dictionary(13, seed=seed + 10)
    chain = swap(small, large, X, threshold=threshold)
    ends = [float(((X - one(X)) ** 2).sum(1).mean()) for one in (small, large)]
    assert torch.allclose(chain.error[[0, -1]].double(), torch.tensor(ends).double(), rtol=1e-5)
    sizes = [float(one.encode(X).l0().mean()) for one in (small, large)]
    assert torch.allclose(chain.l0[[0, -1]].double(), torch.tensor(sizes).double(), rtol=1e-5)
    assert sorted(latent for out, _ in chain.components for latent in out) == list(range(6))
    assert sorted(latent for _, into in chain.components for latent in into) == list(range(13))


def test_the_ends_are_the_dictionaries_themselves():
    small, large = random_dictionary(6), random_dictionary(13, seed=10)
    end = stitch(small, large, keep=[], add=range(13), bias=1.0)
    assert torch.equal(end(X), large(X)) and torch.equal(end.encode(X).dense(), large.encode(X).dense())
    begin = stitch(small, large, keep=range(6), add=[])
    assert torch.allclose(begin(X), small(X), atol=1e-12)


def test_what_inserting_does_is_what_a_stitched_dictionary_measures():
    small, large = random_dictionary(6), random_dictionary(13, seed=10)
    seams = compare(small, large, X)
    error = float(((X - small(X)) ** 2).sum(1).mean())
    for latent in range(13):
        both = stitch(small, large, keep=range(6), add=[latent])
        assert float(((X - both(X)) ** 2).sum(1).mean()) - error == pytest.approx(float(seams.change[latent]))


def test_values_are_the_same_beside_other_latents():
    small, large = random_dictionary(6), random_dictionary(13, seed=10)
    both = stitch(small, large, keep=[1, 4], add=[0, 7, 12]).encode(X).dense()
    expected = torch.cat([small.encode(X).dense()[:, [1, 4]], large.encode(X).dense()[:, [0, 7, 12]]], 1)
    assert torch.allclose(both, expected, atol=1e-10)


def planted_pair():
    """A small dictionary of five of eight orthogonal directions; a large one with all of them, one in two halves."""
    eye = torch.eye(8, dtype=torch.float64)
    small = eye[:5]
    halves = torch.nn.functional.normalize(torch.stack([eye[0] + 0.5 * eye[1], eye[0] - 0.5 * eye[1]]), dim=1)
    large = torch.cat([halves, eye[1:]])
    tied = [Dictionary(rows, rows.new_zeros(len(rows)), rows, rows.new_zeros(8)) for rows in (small, large)]
    fires = torch.rand(500, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    return *tied, fires * (1 + draw(500, 8, seed=1).abs())


def test_new_latents_help_and_repeated_ones_count_double():
    small, large, x = planted_pair()
    seams = compare(small, large, x)
    novel = torch.tensor([False] * 6 + [True] * 3)
    assert torch.equal(seams.change < 0, novel)
    assert seams.roc().area == 1.0 and torch.equal(seams.novel(), novel)
    assert set(seams.components(0.8)) == {
        ((0,), (0, 1)),
        *(((i,), (i + 1,)) for i in range(1, 5)),
        *(((), (i,)) for i in (6, 7, 8)),
    }


def test_the_area_is_the_share_of_pairs_in_order():
    score, positive = draw(60), torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.4
    score[:20] = score[:20].round()  # ties count half
    pairs = score[positive][:, None] - score[~positive]
    found = roc(score, positive)
    assert found.area == pytest.approx(float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2))
    gain = [
        float((score[positive] >= cut).double().mean() - (score[~positive] >= cut).double().mean())
        for cut in [*score.tolist(), found.threshold]
    ]
    assert gain[-1] == pytest.approx(max(gain))


def test_what_cannot_be_stitched_is_refused():
    small, large = random_dictionary(6), random_dictionary(13, seed=10)
    competing = Dictionary(small.W_enc, small.b_enc, small.W_dec, small.b_dec, select="topk", k=2)
    with pytest.raises(ValueError, match="compete for k places"):
        stitch(competing, large, keep=[0], add=[1])
    with pytest.raises(ValueError, match="two sites"):
        compare(random_dictionary(6, d=5), large, X)
