"""Layers frozen, left out, reordered and patched back: each beside what it must equal."""

import pytest
import torch

import patchclamp as pc
from patchclamp.patching.layers import back_patching, freeze, leave_out, reordered
from patching import cases


def tokens() -> torch.Tensor:
    return torch.randint(3, 90, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "falcon", "olmo2"])
def test_layers_left_out_are_layers_that_are_not_there(name):
    model, ids = cases.model(name), tokens()
    left = model.run(ids, do=leave_out(model, [1])).logits
    assert torch.allclose(reordered(model, [0, 2]).run(ids).logits, left, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_order_is_what_the_stream_passes(name):
    model, ids = cases.model(name), tokens()
    swapped = reordered(model, [0, 2, 1])
    assert torch.equal(reordered(model, [0, 1, 2]).run(ids).logits, model.run(ids).logits)
    assert not torch.allclose(swapped.run(ids).logits, model.run(ids).logits, atol=1e-3)
    run = swapped.run(ids, record=["resid_post.0", "resid_pre.2", "resid_post.1"])
    start = model.run(ids, record="resid_post.2", do=[pc.patch("resid_pre.2", run["resid_post.0"])])
    assert torch.allclose(run["resid_post.1"], start["resid_post.2"], atol=1e-5)
    assert model.n_layers == 3 and swapped.weights.W_out[1].data_ptr() == model.weights.W_out[2].data_ptr()


def test_frozen_layers_write_what_they_wrote():
    model, ids = cases.model("llama"), tokens()
    source = model.run(ids, record=["attn_out.*", "mlp_out.*"])
    do = [pc.ablate("z.0.1"), *freeze(model, source, [1, 2])]
    run = model.run(ids, record=["attn_out.2", "mlp_out.1", "attn_out.0"], do=do)
    assert torch.equal(run["attn_out.2"], source["attn_out.2"]) and torch.equal(run["mlp_out.1"], source["mlp_out.1"])
    assert not torch.allclose(run["attn_out.0"], source["attn_out.0"])


def test_patching_back_into_the_next_layer_changes_nothing():
    model, task = cases.model("llama"), cases.task()
    table = back_patching(model, task, pos=-1)
    assert table.dims == ("state", "late", "early") and table.shape == (2, 3, 3)
    run = model.run(task.clean, record="resid_post.2")
    by_hand = model.run(task.clean, do=[pc.patch("resid_pre.1", run["resid_post.2"][:, -1], pos=-1)]).logits
    expected = float(pc.metrics.logit_difference(task.at_answer(by_hand), task).mean())
    assert float(table.sel(state="own", late=2, early=1)) == pytest.approx(expected, abs=1e-5)
    assert torch.isnan(torch.tensor(float(table.sel(state="own", late=0, early=1))))
    assert abs(float(table.sel(state="own", late=2, early=0)) - table.attrs["without"]) > 1e-4


def test_no_order_at_all_is_refused():
    for order in ([], [0, 0], [0, 3]):
        with pytest.raises(ValueError, match="order"):
            reordered(cases.model("gpt2"), order)
