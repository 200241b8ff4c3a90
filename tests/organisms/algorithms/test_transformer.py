"""What is said to be cancelled is cancelled: norms, positions, MLPs; and the network is a standard class."""

import pytest
import torch

import patchclamp as pc
from patchclamp.organisms.algorithms.transformer import adamw, transformer, warm_cosine, weight_norm

SIZES = {"vocabulary": 20, "layers": 2, "heads": 4, "width": 32, "context": 16, "seed": 0}
TOKENS = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("hidden", [0, 48])
@pytest.mark.parametrize("norm", [True, False])
def test_it_certifies_as_a_class_of_transformers(hidden, norm):
    model = transformer(**SIZES, hidden=hidden, norm=norm)
    assert type(model).__name__ == "ArceeForCausalLM"
    assert pc.wrap(model).certify().holds


def test_without_norms_what_a_block_reads_is_the_stream():
    model = pc.wrap(transformer(**SIZES, hidden=48, norm=False))
    run = model.run(TOKENS, record=["resid_pre.*", "attn_in.*", "resid_mid.*", "mlp_in.*"])
    for layer in range(2):
        assert torch.allclose(run[f"attn_in.{layer}"], run[f"resid_pre.{layer}"], atol=1e-6)
        assert torch.allclose(run[f"mlp_in.{layer}"], run[f"resid_mid.{layer}"], atol=1e-6)


def test_without_positions_the_order_of_what_came_before_does_not_matter():
    last = [
        pc.wrap(transformer(**(SIZES | {"layers": 1}), hidden=48, rotary=rotary)).run(tokens).logits[:, -1]
        for rotary in (False, True)
        for tokens in (TOKENS, torch.cat([TOKENS[:, :-1].flip(1), TOKENS[:, -1:]], 1))
    ]
    assert torch.allclose(last[0], last[1], atol=1e-5)
    assert not torch.allclose(last[2], last[3], atol=1e-3)


def test_attention_only_has_an_mlp_that_adds_nothing_and_is_not_trained():
    model = transformer(**SIZES, hidden=0)
    assert pc.wrap(model).run(TOKENS, record="mlp_out.*")["mlp_out.1"].abs().max() == 0
    trained = {
        id(x) for group in adamw(model, learning_rate=1e-3, weight_decay=1.0).param_groups for x in group["params"]
    }
    assert not any(id(parameter) in trained for name, parameter in model.named_parameters() if "mlp" in name)


def test_the_global_generator_is_left_alone_and_the_seed_decides():
    state = torch.get_rng_state()
    one, same, other = (transformer(**(SIZES | {"seed": seed}), hidden=8) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_the_norm_of_the_weights_is_of_those_that_are_trained():
    model = transformer(**SIZES, hidden=0, norm=False)
    trained = [x for name, x in model.named_parameters() if "norm" not in name and "mlp" not in name]
    assert weight_norm(model) == pytest.approx(torch.cat([x.detach().flatten() for x in trained]).norm().item())


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    rates = [warm_cosine(step, 1000, 1.0, 100) for step in range(1001)]
    assert max(rates) == rates[99] == 1.0 and rates[0] == 0.01 and rates[-1] == pytest.approx(0.01)
