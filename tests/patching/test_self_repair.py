"""The split of a logit's change is exact in every architecture, and finds planted repairers and erasers."""

import numpy as np
import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.patching import self_repair, self_repairs
from patchclamp.sites import SiteError
from patching import cases


def tokens(n: int = 4, length: int = 8) -> torch.Tensor:
    return torch.randint(3, 90, (n, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma2", "gemma3_text", "falcon", "gptj", "opt", "granite", "olmo2", "cohere", "mixtral"]
)
def test_the_parts_sum_to_the_change_on_every_token(name):
    model = cases.model(name)
    for site in ("z.1.2", "mlp_out.0"):
        found = self_repair(model, tokens(), site, seed=1)
        assert found.gap < 1e-5
        assert np.abs(found.change).max() > 1e-4
        assert np.allclose(found.own + found.heads + found.mlps + found.norm, found.change, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_change_is_that_of_the_model_s_own_logits(name):
    model, ids = cases.model(name), tokens()
    found = self_repair(model, ids, "z.0.1", to="zero")
    with torch.no_grad():
        before = model.run(ids).logits.double()
        after = model.run(ids, do=[pc.ablate("z.0.1")]).logits.double()
    change = (after - after.mean(-1, keepdim=True)) - (before - before.mean(-1, keepdim=True))
    expected = change[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].flatten()
    assert np.allclose(found.change, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite"])
def test_with_the_last_scale_held_the_norm_has_no_part(name):
    """The counterfactual, run: `frozen` is the change of the logit under a clean final scale."""
    model, ids = cases.model(name), tokens()
    found = self_repair(model, ids, "z.1.0", to="zero")
    clean = model.run(ids, record=["final_norm_scale", "final_norm"])
    held = [pc.ablate("z.1.0"), pc.patch("final_norm_scale", clean)]
    other = model.run(ids, record="final_norm", do=held)
    unembed = model.weights.W_U.detach().double()
    reads = (unembed.T[ids[:, 1:]] - unembed.mean(1)).flatten(0, 1)
    moved = ((other["final_norm"] - clean["final_norm"])[:, :-1].flatten(0, 1).double() * reads).sum(-1).numpy()
    factor = np.vdot(moved, found.frozen) / np.vdot(moved, moved)  # granite divides its logits
    assert np.allclose(moved * factor, found.frozen, atol=1e-5)
    assert name == "granite" or factor == pytest.approx(1, abs=1e-4)
    assert np.abs(found.norm).max() > 1e-5


def test_behind_the_last_heads_only_that_layer_s_mlp_and_the_norm_can_repair():
    found = self_repair(cases.model("llama"), tokens(), "z.2.3", neurons=True)
    silent = [name for name in found.effects.component.values if name not in ("z.2.3", "mlp_out.2", "norm")]
    assert float(np.abs(found.effects.sel(component=silent)).max()) < 1e-6
    assert np.abs(found.mlps).max() > 1e-4
    before, after = found.neurons[2]
    assert np.allclose((after - before).sum(1).numpy(), found.effects.sel(component="mlp_out.2").values, atol=1e-6)


def test_without_norm_and_without_later_layers_nothing_repairs():
    from patchclamp.organisms.algorithms.transformer import transformer

    plain = transformer(
        vocabulary=50, layers=1, heads=4, width=16, hidden=0, context=16, norm=False, rotary=True, seed=0
    )
    ids = torch.randint(0, 50, (4, 8), generator=torch.Generator().manual_seed(0))
    found = self_repair(pc.wrap(plain), ids, "z.0.1")
    assert np.abs(found.own).max() > 1e-3
    assert np.abs(found.heads).max() == 0 and np.abs(found.mlps).max() == 0
    assert np.abs(found.repair).max() < 1e-5


def test_an_eraser_is_named_first():
    """A neuron is made to write against every token in proportion to what head 2.1 adds along one direction."""
    model = pc.wrap(tiny.build("gpt2"))
    ids, layer, neuron = tokens(), 2, 17
    unembed = model.weights.W_U.detach()
    target = int(ids[0, 1])
    with torch.no_grad():
        out, into = model.weights.W_out[layer], model.weights.W_in[layer]
        towards = unembed[:, target] - unembed.mean(1)
        source = model.weights.W_O[layer, 1].mean(0)
        into[:, neuron] = 30 * source / source.norm()
        model.weights.b_in[layer][neuron] = 3.0
        out[neuron] = -2 * towards / towards.norm()
    targets = torch.full_like(ids, -1)
    targets[:, 3] = target
    found = self_repair(model, ids, f"z.{layer}.1", to="zero", neurons=True, targets=targets)
    amount = found.erasers(layer)
    assert amount.neuron.values[0] == f"mlp_post.{layer}.{neuron}" and float(amount[0]) > 0


def test_a_table_over_sites_is_their_means():
    model, ids = cases.model("llama"), tokens()
    table = self_repairs(model, ids, ["z.0.0", "mlp_out.1"], top=0.25, seed=2)
    one = self_repair(model, ids, "mlp_out.1", seed=2)
    assert table.dims == ("site", "tokens", "term") and table.attrs["gap"] < 1e-5 and table.attrs["count"] == 28
    for label, share in (("top", 0.25), ("all", 1.0)):
        row = table.sel(site="mlp_out.1", tokens=label)
        assert {str(k): float(v) for k, v in zip(row.term.values, row.values, strict=True)} == one.mean(share)
    assert one.top(0.25).sum() == 7 and one.clean[one.top(0.25)].min() >= one.clean[~one.top(0.25)].max()


def test_repairers_are_ordered_and_padding_is_left_out():
    model, ids = cases.model("gpt2"), tokens()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 6:] = False
    found = self_repair(model, ids, "z.0.1", to="zero", attention_mask=mask)
    assert len(found.change) == 26 and (np.diff(found.repairers().values) <= 0).all()
    assert "z.0.1" not in found.repairers().component.values
    assert found.repairers().sum() == pytest.approx(found.repair.mean(), abs=1e-6)


def test_errors_say_what_was_meant():
    model = cases.model("gpt2")
    with pytest.raises(SiteError, match="no component"):
        self_repair(model, tokens(), "resid_post.1")
    with pytest.raises(SiteError, match="takes several"):
        self_repair(model, tokens(), "z.*.1")
    with pytest.raises(ValueError, match="next one"):
        self_repair(model, tokens(3, 1), "z.0.0")
    with pytest.raises(LookupError, match="neurons=True"):
        self_repair(model, tokens(), "z.0.0").erasers(1)
    with pytest.raises(LookupError, match="own, heads"):
        self_repair(model, tokens(), "z.0.0").group("norms")
