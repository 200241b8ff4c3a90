"""Direct effects sum to the logit difference, in every architecture that ends in a norm and an unembedding."""

import numpy as np
import pytest

import patchclamp as pc
from patchclamp.sites import SiteError
from patching import cases


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "llama",
        "gemma2",
        "gemma3_text",
        "falcon",
        "gptj",
        "bloom",
        "opt",
        "mixtral",
        "gpt_oss",
        "granite",
        "olmo2",
        "glm4",
        "cohere",
    ],
)
def test_the_parts_sum_to_the_logit_difference(name: str):
    model, task = cases.model(name), cases.task()
    for neurons in (False, True):
        parts = pc.patching.direct_effect(model, task, neurons=neurons)
        assert parts.attrs["gap"] < 1e-4
        assert float(parts.sum("component").mean()) == pytest.approx(parts.attrs["logit_difference"], abs=1e-4)


def test_heads_and_neurons_are_named_by_their_sites():
    model, task = cases.model("gpt2"), cases.task()
    coarse = pc.patching.direct_effect(model, task)
    fine = pc.patching.direct_effect(model, task, neurons=True)
    names = list(coarse.component.values)
    assert {"embed", "pos_embed", "head_out.2.3", "mlp_out.1", "bias"} <= set(names)
    of_mlp = [n for n in fine.component.values if n.startswith("mlp_post.1.") or n == "b_out.1"]
    total = float(fine.sel(component=of_mlp).sum("component").mean())
    assert total == pytest.approx(float(coarse.sel(component="mlp_out.1").mean()), abs=1e-5)


def test_a_head_s_direct_effect_is_what_its_direct_path_carries():
    """Taking a head out of the last stream, with the norm's scale held, moves the metric by its direct effect."""
    model, task = cases.model("llama"), cases.task()
    effect = float(pc.patching.direct_effect(model, task).sel(component="head_out.0.2").mean())
    run = model.run(task.clean, record=["head_out.0", "resid_post.2", "final_norm_scale"])
    written = run["head_out.0"][:, :, 2]
    held = pc.patch("final_norm_scale", run)
    out = model.run(task.clean, do=[pc.add("resid_post.2", -written), held])

    def score(logits):
        return float(pc.metrics.logit_difference(task.at_answer(logits), task).mean())

    assert score(run.logits) - score(out.logits) == pytest.approx(effect, abs=1e-4)


def test_a_model_without_a_last_norm_says_so():
    with pytest.raises(SiteError, match="last norm"):
        pc.patching.direct_effect(cases.model("bert"), cases.task())


def test_prompts_are_a_dimension():
    parts = pc.patching.direct_effect(cases.model("llama"), cases.task())
    assert parts.dims == ("component", "prompt") and np.isfinite(parts.values).all()
