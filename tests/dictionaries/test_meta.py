"""Meta-dictionaries on rows that are sums of known parts, and on rows that are not."""

import pytest
import torch

from patchclamp.dictionaries import Dictionary, measures
from patchclamp.dictionaries.meta import decompose, matches
from patchclamp.organisms import planted


def test_parts_of_composed_rows_are_found_and_random_rows_have_none():
    world = planted.sparse_codes(sources=12, width=24, active=2, coefficients=planted.Constant())
    rows = world.sample(400, seed=0).activations
    atoms = world.truth().directions[0]
    found = decompose(rows, width=14, k=2, epochs=400, learning_rate=1e-2, progress=False)
    assert found.explained > 0.95 > 0.5 > found.random
    assert measures.recovered(found.parts.W_dec, atoms) >= 11 / 12
    tied = Dictionary(atoms, torch.zeros(12), atoms, torch.zeros(24))
    assert float((matches(found.parts, tied) > 0.9).float().sum()) >= 11
    assert torch.allclose(found.rows.norm(dim=1), torch.ones(400))


def test_a_dictionary_gives_its_decoder():
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    dictionary = Dictionary(rows, torch.zeros(40), 3 * rows, torch.zeros(6))
    found = [decompose(one, width=5, k=2, epochs=2, progress=False) for one in (dictionary, rows)]
    assert torch.allclose(found[0].parts.W_dec, found[1].parts.W_dec, atol=1e-6)
    with pytest.raises(ValueError, match="fewer parts than rows"):
        decompose(rows, width=40)
