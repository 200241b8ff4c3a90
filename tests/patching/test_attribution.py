"""Attribution is exact where the model is linear in the site, and the same table elsewhere to first order."""

import numpy as np
import pytest
import torch

import patchclamp as pc
from patching import cases


def test_equals_the_gradient_by_hand():
    model, task = cases.model("llama"), cases.task()
    table = pc.patching.attribution(model, task, "z.*.*", positions="all", normalise=False)
    clean = model.run(task.clean, record="z.1")

    def metric(logits):
        return pc.metrics.logit_difference(task.at_answer(logits), task).mean()

    corrupt = model.run(task.corrupt, record="z.1", grad=metric)
    assert corrupt.grad is not None
    by_head = ((clean["z.1"] - corrupt["z.1"]) * corrupt.grad["z.1"]).sum((0, 1, 3))
    np.testing.assert_allclose(table[1].values - table.attrs["corrupted"], by_head.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_is_exact_where_the_metric_is_linear(name: str):
    """Beyond the last block only the norm is not linear: with its scale held, first order is all there is."""
    model, task = cases.model(name), cases.task()
    near = pc.patching.attribution(model, task, "resid_post.2", positions=-1, normalise=False)
    clean = model.run(task.clean, record="resid_post.2")
    corrupt = model.run(task.corrupt, record=["resid_post.2", "final_norm_scale"])

    def score(do):
        logits = model.run(task.corrupt, do=do).logits
        return float(pc.metrics.logit_difference(task.at_answer(logits), task).mean())

    # a step so small that the norm's own change is of second order
    step = 1e-3 * (clean["resid_post.2"] - corrupt["resid_post.2"])[:, -1]
    moved = score([pc.add("resid_post.2", step, pos=-1)]) - score([])
    assert moved / 1e-3 == pytest.approx(float(near[0]) - near.attrs["corrupted"], rel=0.05, abs=2e-3)


def test_same_axes_and_ends_as_the_sweep():
    model, task = cases.model("gpt2"), cases.task()
    exact, near = (f(model, task, ["attn_out.*", "mlp_out.*"]) for f in (pc.patching.sweep, pc.patching.attribution))
    assert exact.dims == near.dims == ("kind", "layer", "pos")
    assert exact.attrs["clean"] == pytest.approx(near.attrs["clean"], abs=1e-5)
    assert exact.attrs["method"] == "exact" and near.attrs["method"] == "attribution"


def test_scores_with_masked_entries_are_finite():
    model, task = cases.model("llama"), cases.task()
    near = pc.patching.attribution(model, task, "scores.*.*", positions="all")
    assert bool(torch.as_tensor(near.values).isfinite().all())
