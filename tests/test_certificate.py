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
