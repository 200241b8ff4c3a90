import pytest
import torch

from evaluation.worlds import features
from patchclamp.dictionaries import TopK
from patchclamp.dictionaries.measures import fvu
from patchclamp.evaluation import baselines, frozen_decoder, identity, pca, untrained, zero


def test_identity_gives_back_every_bit_and_zero_none():
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * 1e3
    assert torch.equal(identity(16)(x), x) and torch.equal(zero(16)(x), torch.zeros_like(x))


def test_principal_components_explain_the_most_that_so_many_directions_can():
    x = features(500).x + 3.0
    values = torch.linalg.svdvals((x - x.mean(0)).double()) ** 2
    assert fvu(x, pca(x)(x)) < 1e-10
    kept = fvu(x, pca(x, active=2)(x))
    assert kept <= float(values[2:].sum() / values.sum()) + 1e-9  # the two largest of each row, not the same two


def test_baselines_are_as_sparse_as_the_dictionary():
    x = features(500).x
    one = untrained(TopK(k=3), x, width=24)
    found = baselines(one, x)
    assert list(found) == ["random", "PCA", "units"]
    assert float(found["random"].encode(x).l0().mean()) <= 3
    assert found["PCA"].k == round(float(one.encode(x).l0().mean()))
    with pytest.raises(ValueError, match="no baseline is called"):
        baselines(one, x, ["ransom"])


def test_an_untrained_dictionary_has_the_directions_that_training_begins_with():
    x = features(500).x
    a, b = untrained(TopK(k=3), x, width=24), untrained(TopK(k=3), x, width=24, seed=1)
    frozen = frozen_decoder(TopK(k=3), x, width=24, steps=50, learning_rate=3e-3)
    same = torch.cosine_similarity(a.W_dec, frozen.W_dec).mean()  # one half of it is a row of the data
    other = torch.cosine_similarity(a.W_dec, b.W_dec).mean()
    assert 0.5 < float(same) < 0.95 and float(other) < 0.5
    assert not torch.allclose(a.W_enc, frozen.W_enc, atol=1e-2)
    begun = frozen_decoder(TopK(k=3), x, width=24, steps=1, learning_rate=1e-30)
    assert fvu(x, frozen(x)) < fvu(x, begun(x))
