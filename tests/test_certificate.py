"""Every equation of every architecture; what is missing has a reason; what cannot be certified is not claimed."""

import pytest
import torch
import transformers

import tiny
from patchclamp.anatomy.discover import discover
from patchclamp.model import wrap
from patchclamp.sites import Site

BLOCK = {
    "resid_pre",
    "resid_post",
    "attn_in",
    "q",
    "k",
    "v",
    "scores",
    "pattern",
    "z",
    "head_out",
    "attn_out",
    "mlp_out",
}
LACKS = {"gptj", "gpt_neox", "falcon", "cohere", "cohere2", "phi", "codegen"}  # parallel: no resid_mid


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_an_architecture_certifies(name):
    certificate = wrap(tiny.build(name), name=name).certify()
    assert certificate.holds, str(certificate)
    assert [row for row in certificate.rows if row.holds is None] == []
    assert len(certificate.rows) >= 6
    assert all(why for _, why in certificate.absent)


@pytest.mark.parametrize("name", tiny.NAMED)
def test_the_kinds_of_a_block_are_there(name):
    model = wrap(tiny.build(name))
    kinds = {site.kind for site in model.sites() if site.stack == ""}
    assert kinds >= BLOCK
    assert ("resid_mid" in kinds) == (name not in LACKS)
    moe = name in ("mixtral", "qwen3_moe", "gpt_oss")
    assert {"router", "expert_index", "expert_weight", "expert_post"} & kinds == (
        {"router", "expert_index", "expert_weight", "expert_post"} if moe else set()
    )
    assert "mlp_post" in kinds or name in ("mixtral", "gpt_oss")
    assert ("logits" in kinds) and model.certificate.causal == (name not in ("bert", "vit"))
    missing = {kind.split(".")[-1] for kind, _ in model.certificate.absent}
    assert missing.isdisjoint(kinds - {"cross_q"}) or name == "t5"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gptj"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_certify(name, dtype):
    assert wrap(tiny.build(name, dtype=dtype)).certify().holds


VARIANTS = [
    ("gpt_neox", {"use_parallel_residual": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"alibi": True, "parallel_attn": False}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("t5", {"feed_forward_proj": "gated-gelu"}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("gpt2", {"add_cross_attention": True}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_variants_certify(name, changes):
    certificate = wrap(tiny.build(name, **changes)).certify()
    assert certificate.holds, str(certificate)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("llama", Site("attn_out", 1), Site("mlp_out", 1)),
        ("llama", Site("resid_mid", 1), Site("resid_pre", 1)),
        ("llama", Site("z", 1), Site("z", 0)),
        ("mixtral", Site("expert_weight", 0), Site("expert_weight", 1)),
        ("mixtral", Site("expert_index", 1), Site("expert_index", 0)),
    ],
)
def test_a_wrong_tap_is_caught(name, wrong, right):
    """The certificate can fail: sites that are swapped, or one layer off, break its equations."""
    from dataclasses import replace

    from patchclamp.certificate import certify

    model = wrap(tiny.build(name))
    taps = model.anatomy.taps
    moved = {**taps, wrong: replace(taps[right], site=wrong)}
    model._anatomies = dict.fromkeys(model._anatomies, replace(model.anatomy, taps=moved))
    assert not certify(model.anatomy, model.hf, model._raw_run).holds


def gated(**changes):
    """Qwen3-Next: z is gated before the out-projection; every MLP is a mixture."""
    options = tiny.CONFIGS["qwen2_moe"][1] | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2} | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(**options)).eval()


def test_a_gate_behind_attention_is_said_to_be_one():
    certificate = wrap(gated()).certify()
    assert certificate.holds, str(certificate)
    assert any(row.equation == "z = gate * (pattern @ v), gate > 0" for row in certificate.rows)


def test_what_is_not_a_number_does_not_hold():
    model = wrap(tiny.build("llama"))
    assert model.anatomy.taps
    model.hf.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    rows = {row.equation: row for row in model.certify().rows}
    assert rows["down-projection(mlp_post) = what the MLP computes"].holds is False
    assert rows["resid_mid = resid_pre + attn_out"].holds is False  # of layer 2; those before hold


def test_a_mixtures_neurons_are_not_those_of_the_layers_mixer():
    """Jamba: state-space layers have an up- and a down-projection of their own."""
    options = tiny._LLAMA | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0, "num_experts": 4}
    options |= {"expert_layer_period": 1, "mamba_d_state": 4, "use_mamba_kernels": False, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(transformers.JambaForCausalLM(transformers.JambaConfig(**options)).eval())
    assert model.certify().holds, str(model.certificate)
    assert "mlp_post" not in {site.kind for site in model.sites()}


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_a_mixture_is_the_weighted_sum_of_its_experts(name):
    rows = {row.equation: row for row in wrap(tiny.build(name)).certify().rows}
    assert rows["experts = sum of expert_weight[expert_index] * W_down expert_post"].holds
    row = rows["mlp_out = experts + mlp_out where expert_weight is 0"]  # of qwen2, what shared experts add
    assert row.holds and row.error < 1e-5 and not row.note


def test_zero_weights_do_not_confuse_discovery():
    """A pruned head, a dead MLP: the sum is read off the modules, not off what the weights happen to do."""
    hf = tiny.build("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].attn.c_proj.weight.zero_()
        hf.transformer.h[2].mlp.c_proj.weight.zero_()
    assert set(discover(hf).taps) == set(discover(tiny.build("gpt2")).taps)
    rows = wrap(hf).certify().rows
    assert all(row.holds is not False for row in rows)


def test_experts_that_all_run_have_a_router_and_no_index():
    """Llama 4: its router is a linear layer that returns two tensors, its experts take every token."""
    config = transformers.Llama4TextConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4, interleave_moe_layer_step=1,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(transformers.Llama4ForCausalLM(config).eval())
    certificate = model.certify()
    assert certificate.holds, str(certificate)
    kinds = {site.kind for site in model.sites()}
    assert {"router", "mlp_post"} <= kinds
    for kind in ("expert_index", "expert_weight", "expert_post"):
        assert (
            "none is chosen by index, and the router's score scales what an expert reads"
            in dict(certificate.absent)[kind]
        )
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    assert model.run(ids, record="router.0")["router.0"].shape == (2, 7, 4)
