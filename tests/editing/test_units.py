"""Silencing units with a hook and taking them out of the weights is the same thing, in every layout of the weights."""

import pytest
import torch

import patchclamp as pc
from patchclamp.editing import EditError, Units
from tiny import build

IDS = torch.tensor([[5, 9, 3, 7, 11], [2, 8, 1, 4, 6]])


def some(model):
    layers = range(model.n_layers)
    chosen = {f"mlp_post.{i}": [0, 3, 7 + i] for i in layers} | {f"z.{i}": [1, 2, 9 + i] for i in layers}
    return Units.of(chosen)


# GPT-2 stores [in, out] and fuses queries, keys and values; NeoX interleaves them; Llama shares values between heads;
# Phi-3 fuses the MLP's halves.
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "phi3", "gptj"])
def test_hook_and_weights_agree(family):
    model = pc.wrap(build(family))
    units = some(model)
    clean = model.run(IDS).logits
    hooked = model.run(IDS, do=units.ablation()).logits
    with units.removal(model).applied(model):
        removed = model.run(IDS).logits
    assert float((hooked - removed).abs().max()) < 1e-6
    assert float((hooked - clean).abs().max()) > 1e-3
    assert torch.equal(model.run(IDS).logits, clean)


def test_the_in_weights_are_gone_too():
    model = pc.wrap(build("gpt2"))
    with Units.of({"mlp_post.1": [4], "z.1": [9]}).removal(model).applied(model):
        run = model.run(IDS, record=["mlp_pre.1", "z.1"])
        assert not run["mlp_pre.1"][..., 4].any() and not run["z.1"].flatten(2)[..., 9].any()
        assert run["mlp_pre.1"][..., 5].any()


def test_a_value_channel_that_other_heads_read_stays():
    model = pc.wrap(build("llama"))  # heads 0 and 1 read one kv head
    weight = model.hf.model.layers[0].self_attn.v_proj.weight
    with Units.of({"z.0": [3]}).removal(model).applied(model):
        assert weight[3].any()
    with Units.of({"z.0": [3, 11]}).removal(model).applied(model):
        assert not weight[3].any() and weight[4].any()


def test_no_units_change_no_bit():
    model = pc.wrap(build("llama"))
    clean = model.run(IDS).logits
    with Units.of({}).removal(model).applied(model):
        assert torch.equal(model.run(IDS).logits, clean)


def test_as_many_of_each_site_are_drawn_and_the_same_again():
    model = pc.wrap(build("llama"))
    units = some(model)
    drawn = units.drawn(model, seed=3)
    assert {s: len(i) for s, i in drawn.of_site.items()} == {s: len(i) for s, i in units.of_site.items()}
    again = units.drawn(model, seed=3)
    assert all(torch.equal(i, again.of_site[s]) for s, i in drawn.of_site.items())
    assert len(units | drawn) == len(units) + len(drawn) - len(units & drawn)


def test_what_has_no_weights_of_its_own_is_refused_by_name():
    with pytest.raises(EditError, match=r"'resid_post.1' has no units"):
        Units.of({"resid_post.1": [0]})
    with pytest.raises(EditError, match="no single MLP down-projection in layer 0"):
        Units.of({"mlp_post.0": [0]}).removal(pc.wrap(build("mixtral")))
    with pytest.raises(EditError, match=r"unit 56 of mlp_post\.0, which has 56"):
        Units.of({"mlp_post.0": [56]}).removal(pc.wrap(build("llama")))
    with pytest.raises(EditError, match="layers 0 to 2"):
        Units.of({"z.3": [0]}).removal(pc.wrap(build("llama")))
