import pytest
import torch

from patchclamp.dictionaries import Dictionary, infer, measures
from patchclamp.dictionaries.inference import fista, sparse_coding
from patchclamp.organisms import planted

WORLD = planted.sparse_codes(12, 8, 2)
TRUE = torch.as_tensor(WORLD.truth().directions[0]).float()
X = WORLD.sample(1000, seed=0).activations


@pytest.fixture(scope="module")
def learned():
    return sparse_coding(X, 12, l1=0.1, batch=64, tokens=25_000, seed=0)


def test_it_finds_the_planted_atoms_and_its_codes_find_theirs(learned):
    assert measures.match(learned.W_dec, TRUE).mean > 0.95
    unseen = WORLD.sample(500, seed=1)
    assert measures.mcc(infer(learned, unseen.activations, l1=0.01).dense(), unseen.coefficients) > 0.9
    random = measures.random_dictionary(learned)
    assert measures.match(random.W_dec, TRUE).mean < 0.8


def test_from_near_the_truth_optimal_directions_stay_there_and_random_ones_explain_more_and_more():
    short, long = (
        sparse_coding(X, 12, l1=0.1, tokens=n, batch=250, update="optimal-directions", seed=1) for n in (250, 10_000)
    )
    left = [measures.fvu(X, infer(d, X, l1=0.1).dense() @ d.W_dec) for d in (short, long)]
    assert left[1] < 0.7 * left[0]


def test_its_encoder_is_one_step_of_ista(learned):
    assert isinstance(learned, Dictionary)
    expected = torch.nn.functional.relu(X[:20] @ learned.W_dec.T - 0.1)
    assert torch.allclose(learned.encode(X[:20]).dense(), expected, atol=1e-6)


def test_an_offset_is_found_by_centring_and_signed_codes_are_symmetric():
    signs = torch.randint(2, (1000, 12), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    x = (WORLD.sample(1000, seed=0).coefficients * signs) @ TRUE
    found = sparse_coding(x + 7, 12, l1=0.1, batch=64, tokens=25_000, signed=True, centre=True)
    assert (found.b_dec - 7).abs().max() < 0.5
    assert measures.match(found.W_dec, TRUE, signed=False).mean > 0.95
    assert (fista(found.W_dec, x, 0.1, signed=True).codes.values < 0).any()


def test_the_same_seed_gives_the_same_bits():
    first, second, other = (sparse_coding(X, 12, l1=0.1, tokens=2000, seed=s).W_dec for s in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="positive"):
        sparse_coding(X, 12, l1=0)
    with pytest.raises(ValueError, match="optimal-directions"):
        sparse_coding(X, 12, l1=0.1, update="mod")
    with pytest.raises(ValueError, match="no end"):
        sparse_coding(WORLD, 12, l1=0.1)
