"""Activations as integers: the latent that says most, the nearest centroid, codes of positives alone."""

import pytest
import torch

from patchclamp.dictionaries import Dictionary, TopK, train
from patchclamp.dictionaries.discrete import Codebook, codebook, integers, only_in


def clusters(rows=400, count=6, d=10, noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(count, d, generator=generator), dim=1)
    label = torch.randint(0, count, (rows,), generator=generator)
    return centres[label] + noise * torch.randn(rows, d, generator=generator), label, centres


def agreement(codes, label):
    """Share of rows whose code's most frequent label is theirs."""
    table = torch.zeros(int(codes.max()) + 1, int(label.max()) + 1)
    table.index_put_((codes, label), torch.ones(len(codes)), accumulate=True)
    return float(table.max(1).values.sum() / len(codes))


def test_a_codebook_finds_planted_clusters():
    x, label, centres = clusters()
    book = codebook(x, 6, seed=0)
    assert agreement(integers(book, x), label) == 1.0
    assert float(torch.cdist(centres, book.W_dec).min(1).values.max()) < 0.1
    assert torch.equal(codebook(x, 6, seed=0).W_dec, book.W_dec)


def test_the_nearest_centroid_is_chosen(tmp_path):
    book = Codebook(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(1))
    codes = book.encode(x)
    assert torch.equal(codes.indices.squeeze(-1), torch.cdist(x, book.W_dec).argmin(-1))
    assert bool((codes.values == 1).all()) and codes.width == 12
    assert torch.equal(book(x), book.W_dec[codes.indices.squeeze(-1)])
    assert torch.equal(Codebook.load(book.save(tmp_path / "book"))(x), book(x))


def test_a_sparse_autoencoder_gives_integers_too():
    x, label, _ = clusters(2000, noise=0.05)
    dictionary = train(TopK(k=1), x, width=24, tokens=60_000, batch=256, learning_rate=1e-2, progress=False)
    assert agreement(integers(dictionary, x).clamp_min(0), label) > 0.9


def test_the_latent_that_says_most_is_the_code():
    rows = torch.tensor([[1.0, 0.0], [0.0, 10.0], [0.0, 0.0]])
    dictionary = Dictionary(torch.eye(3)[:, :2], torch.zeros(3), rows, torch.zeros(2), threshold=0.5)
    assert integers(dictionary, torch.tensor([[3.0, 1.0], [3.0, 0.1], [0.1, 0.1]])).tolist() == [1, 0, -1]


def test_codes_of_the_positives_alone_are_counted_by_example():
    positive = torch.tensor([[1, 5, 7], [2, 5, 7], [2, 6, 8]])
    negative = torch.tensor([[1, 5, 9], [3, 6, 9]])
    assert only_in(positive, negative).tolist() == [pytest.approx(2 / 3), 0.0, 1.0]
    with pytest.raises(ValueError, match="the same nodes in both"):
        only_in(positive, negative[:, :2])
    with pytest.raises(ValueError, match="7 codes for 3 rows"):
        codebook(torch.zeros(3, 2), 7)
