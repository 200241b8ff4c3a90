"""Models of every kind, and inputs of every form."""

import pytest
import torch
from torch import nn

import patchclamp as pc
import tiny
from patchclamp.model import wrap

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15]]


class Network(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Transformer(nn.Module):
    """A hand-written one, of which only modules are known."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.unembed = nn.Linear(16, 50)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.unembed(x + self.attend(x, x, x)[0])


@pytest.mark.parametrize(
    ("network", "x"),
    [
        (Network(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(4, 4)),  # as many features as rows
        (Network(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)), torch.randn(3, 3, 6, 6)),
    ],
)
def test_a_plain_network_has_module_sites(network, x):
    model = wrap(network)
    run = model.run(x, record="module:layers.0")
    assert torch.equal(run.logits, network(x)) and torch.equal(run["module:layers.0"], network.layers[0](x))
    own = run["module:layers.0"]
    value = torch.randn(own.shape[1:])
    moved = model.run(x, do=pc.add("module:layers.0", value), record="module:layers.0")["module:layers.0"]
    torch.testing.assert_close(moved, own + value)
    each = model.run(x, do=pc.patch("module:layers.0", own.flip(0)), record="module:layers.0")["module:layers.0"]
    assert torch.equal(each, own.flip(0))
    row = model.run(x, do=pc.ablate("module:layers.0", rows=[1]), record="module:layers.0")["module:layers.0"]
    assert not row[1].any() and torch.equal(row[0], own[0])
    swapped = model.run(x, do=pc.ablate("module:layers.0", "mean"), record="module:layers.0")["module:layers.0"]
    torch.testing.assert_close(swapped, own.mean(0).expand_as(own))
    doubled = model.run(x, do=pc.edit("module:layers.0", lambda x: 2 * x), record="module:layers.0")["module:layers.0"]
    assert torch.equal(doubled, 2 * own)
    gradient = model.run(x, record="module:layers.0", grad=lambda y: y[:, 0]).grad["module:layers.0"]
    assert gradient.shape == own.shape and gradient.any()
    for wrong in ({"pos": 0}, {"when": "generated"}):
        with pytest.raises(ValueError, match="not by prompt and token"):
            model.run(x, do=pc.ablate("module:layers.0", **wrong))
    with pytest.raises(IndexError, match="not by prompt and token"):
        model.run(x, record="module:layers.0", positions=-1)
    with pytest.raises(pc.SiteError, match="no anatomy"):
        model.run(x, record="z.0")


def test_a_transformer_written_by_hand_has_positions():
    model = wrap(Transformer())
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    run = model.run(ids, do=pc.ablate("module:embed", pos=-1), record="module:embed")
    assert not run["module:embed"][:, -1].any() and run["module:embed"][:, 0].any()
    assert torch.equal(model.run(ids, record="module:embed", positions=-1)["module:embed"], model.hf.embed(ids)[:, -1:])
    with pytest.raises(ValueError, match="takes no attention_mask"):
        model.run([[1, 2], [3]])


def test_flattened_activations_come_back_by_prompt_and_position():
    model = wrap(tiny.build("opt"))
    run = model.run(
        PROMPTS, record=["mlp_post.1", "mlp_pre.1", "attn_in.1", "ln2_scale.1", "module:model.decoder.layers.1.fc1"]
    )
    assert run["mlp_post.1"].shape == (2, 7, 56) and run["ln2_scale.1"].shape == (2, 7)
    flat = run["module:model.decoder.layers.1.fc1"]
    if flat.ndim == 2:
        with pytest.raises(ValueError, match="not by prompt and token"):
            model.run(PROMPTS, do=pc.ablate("module:model.decoder.layers.1.fc1", pos=-1))
    assert torch.equal(flat.reshape(2, 7, 56), run["mlp_pre.1"])


def test_an_encoder_decoder():
    model = wrap(tiny.build("t5"))
    source, mask = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    given = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": torch.tensor([[0, 3, 4], [0, 5, 6]])}
    sites = ["encoder.resid_post.1", "encoder.pattern.0", "cross_pattern.1", "cross_k.1", "cross_z.1", "resid_post.2"]
    run = model.run(given, record=sites)
    torch.testing.assert_close(run.logits, model.hf(**given).logits, rtol=1e-5, atol=1e-5)
    alone = model.run({"input_ids": source[:1, 2:], "decoder_input_ids": given["decoder_input_ids"][:1]}, record=sites)
    torch.testing.assert_close(
        run["encoder.resid_post.1"][0, 2:], alone["encoder.resid_post.1"][0], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(run["cross_k.1"][0, 2:], alone["cross_k.1"][0], rtol=1e-4, atol=1e-4)
    for site in ("encoder.resid_post.1", "cross_k.1"):  # position 0 of the encoder is behind its padding
        edited = model.run(given, do=pc.ablate(site, pos=0), record=site)[site]
        assert not edited[0, 2].any() and edited[0, 3].any() and not edited[1, 0].any()
    edited = model.run(given, do=pc.ablate("resid_post.1", pos=-1), record="resid_post.1")["resid_post.1"]
    assert not edited[:, 2].any() and edited[:, 1].any()
    source_run = model.run(given, record="encoder.resid_post.1").recording
    real = torch.cat([source_run["encoder.resid_post.1"][0, 2:], source_run["encoder.resid_post.1"][1]])
    torch.testing.assert_close(source_run.mean("encoder.resid_post.1"), real.mean(0))
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    generation = model.generate(
        prompts, record=["encoder.resid_post.1", "cross_pattern.1", "resid_post.2"], max_new_tokens=4
    )
    full = model.run(
        {**given, "decoder_input_ids": generation.tokens[:, :-1]}, record=["cross_pattern.1", "resid_post.2"]
    )
    for site in ("cross_pattern.1", "resid_post.2"):
        torch.testing.assert_close(generation[site], full[site], rtol=1e-3, atol=1e-4)


def test_images():
    model = wrap(tiny.build("vit"))
    images = torch.randn(2, 3, 16, 16)
    run = model.run(images, record=["pattern.1", "z.2", "logits"])
    assert run["pattern.1"].shape == (2, 4, 5, 5) and run["z.2"].shape == (2, 5, 4, 8)
    assert torch.equal(model.run({"pixel_values": images}).logits, model.run(images, record="z.2").logits)
    edited = model.run(images, do=pc.ablate("resid_post.0", pos=0), record="resid_post.0")["resid_post.0"]
    assert not edited[:, 0].any() and edited[:, 1].any()


def test_forms_of_prompts_agree():
    model = wrap(tiny.build("llama"))
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    expected = model.hf(ids).logits
    forms = [ids, ids.tolist(), ids.numpy(), list(ids), {"input_ids": ids}, model.tokens(ids)]
    for form in forms:
        assert torch.equal(model.run(form).logits, expected)
    assert torch.equal(model.run([5, 6, 7]).logits, model.hf(ids[:1]).logits)
    mask = torch.ones_like(ids)
    for wrong, error in (
        (([[5, 6], [7]], mask), TypeError),
        (({"input_ids": ids}, mask), TypeError),
        ((ids, mask[:, :2]), ValueError),
        (([[5, 6], []], None), ValueError),
        (([], None), ValueError),
        (("text", None), TypeError),
        (({"input_idx": ids}, None), TypeError),
    ):
        with pytest.raises(error):
            model.run(wrong[0], attention_mask=wrong[1])
    plain = wrap(Network(nn.Linear(2, 2)))
    assert torch.equal(plain.run([[0.5, 1.5]]).logits, plain.hf(torch.tensor([[0.5, 1.5]])))


REFUSED = ("deepseek_v2", "deberta")
"""Queries of low rank, and biases that are added outside: no matrix gives what attention consumes."""


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_are_no_one_matrix_are_refused(name):
    with pytest.raises(pc.SiteError, match="in no layout"):
        wrap(tiny.build(name)).weights.W_Q[0]


@pytest.mark.parametrize(
    "name", [n for n in tiny.CONFIGS if n not in ("vit", "dinov2", "t5", "mamba", "lfm2", *REFUSED)]
)
def test_weights_rebuild_what_attention_consumes(name):
    model = wrap(tiny.build(name))
    for layer in range(model.n_layers):
        w = model.weights
        run = model.run(PROMPTS[0], record=[f"{kind}.{layer}" for kind in ("attn_in", "q", "k", "v", "z", "head_out")])
        x = run[f"attn_in.{layer}"]
        made = torch.einsum("bpm,hmd->bphd", x, w.W_V[layer]) + w.b_V[layer]
        torch.testing.assert_close(made, run[f"v.{layer}"], rtol=1e-3, atol=1e-4)
        for kind, weight, bias in (("q", w.W_Q, w.b_Q), ("k", w.W_K, w.b_K)):
            made = torch.einsum("bpm,hmd->bphd", x, weight[layer]) + bias[layer]
            seen = run[f"{kind}.{layer}"]
            likeness = torch.cosine_similarity(made[:, 0], seen[:, 0], dim=-1)  # rotary turns by 0 here
            assert float(likeness.min()) > (0.5 if name == "persimmon" else 0.9)  # which centres its queries
        out = torch.einsum("bphd,hdm->bphm", run[f"z.{layer}"], w.W_O[layer])
        torch.testing.assert_close(out, run[f"head_out.{layer}"], rtol=1e-4, atol=1e-4)
        group = model.n_heads // run[f"k.{layer}"].shape[2]
        assert [w.kv_head(layer, h) for h in range(model.n_heads)] == [h // group for h in range(model.n_heads)]
