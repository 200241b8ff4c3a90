import pytest
import torch

from patchclamp.dictionaries import measures
from patchclamp.dictionaries.inference import AmortisedEncoder, amortise, infer
from patchclamp.organisms import planted

WORLD = planted.sparse_codes(12, 12, 2)
TRUE = torch.as_tensor(WORLD.truth().directions[0]).float()


def test_it_learns_to_imitate_known_codes_and_depth_helps():
    batch, unseen = WORLD.sample(2000, seed=0), WORLD.sample(500, seed=1)
    x, codes = batch.activations, batch.coefficients
    scores = []
    for hidden in ((), (64,)):
        encoder = amortise(TRUE, x, hidden=hidden, codes=codes, tokens=60_000, learning_rate=1e-2)
        scores.append(measures.mcc(encoder.encode(unseen.activations).dense(), unseen.coefficients))
    start = measures.mcc(AmortisedEncoder(TRUE).encode(unseen.activations).dense(), unseen.coefficients)
    assert start + 0.2 < scores[0] < scores[1]


def test_with_a_fixed_decoder_the_decoder_stays_and_with_a_learned_one_it_moves_and_keeps_norm_one():
    x = WORLD.sample(2000, seed=0).activations
    fixed = amortise(TRUE, x, l1=0.05, tokens=20_000, learning_rate=1e-2)
    moved = amortise(TRUE, x, l1=0.05, tokens=20_000, learning_rate=1e-2, learn_decoder=True)
    assert torch.equal(fixed.W_dec, TRUE) and not torch.allclose(moved.W_dec, TRUE)
    assert torch.allclose(moved.W_dec.norm(dim=1), torch.ones(12), atol=1e-5)
    assert not any(p.requires_grad for p in moved.parameters()) and not moved.W_dec.requires_grad
    assert measures.fvu(x, fixed.decode(fixed.encode(x))) < 0.3


def test_at_most_k_are_active_and_units_do_not_matter():
    x = WORLD.sample(1000, seed=0).activations
    encoder, larger = (amortise(TRUE, scale * x, k=2, tokens=5000, seed=3) for scale in (1.0, 100.0))
    assert encoder.encode(x).l0().max() <= 2
    assert torch.allclose(100 * encoder(x), larger(100 * x), rtol=1e-3, atol=1e-2)
    assert torch.equal(infer(encoder, x, "encoder").values, encoder.encode(x).values)


def test_the_same_seed_gives_the_same_bits_and_the_global_generator_is_left_alone():
    x = WORLD.sample(500, seed=0).activations
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (amortise(TRUE, x, hidden=(8,), k=2, tokens=1000, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(x), second(x)) and not torch.equal(first(x), other(x))


def test_streams_need_an_end_and_goals_exclude_each_other():
    with pytest.raises(ValueError, match="tokens="):
        amortise(TRUE, WORLD, l1=0.1)
    assert amortise(TRUE, WORLD, l1=0.1, tokens=600).width == 12
    with pytest.raises(ValueError, match="give one of"):
        amortise(TRUE, WORLD, l1=0.1, k=3, tokens=10)
    with pytest.raises(ValueError, match="of the rows"):
        amortise(TRUE, torch.zeros(4, 12), codes=torch.zeros(3, 12))
    with pytest.raises(TypeError, match="stream"):
        amortise(TRUE, [1, 2], l1=0.1, tokens=10)
