"""Attribution: exact where the network is linear, complete where it is not, and equal to its own special cases."""

import pytest
import torch

import patchclamp as pc
from circuits.cases import ids_task, network
from patchclamp.circuits import clean_corrupted, eap, eap_ig, exact
from patchclamp.sites import Site


def linear_network() -> pc.Model:
    """Attention without content and MLPs without activation, behind norms that divide by a constant."""
    model = network("gpt2")
    for block in model.hf.transformer.h:
        width = model.d_model
        block.attn.c_attn.weight.data[:, : 2 * width] = 0  # scores are constant, so that patterns are
        block.mlp.act = torch.nn.Identity()
        for norm in (block.ln_1, block.ln_2):
            norm.eps, norm.weight.data[:] = 1e8, 1e4
    model.hf.transformer.ln_f.eps = 1e8
    model.hf.transformer.ln_f.weight.data[:] = 1e4
    return pc.wrap(model.hf, name="linear")


@pytest.mark.parametrize("method", [eap, eap_ig, clean_corrupted])
def test_attribution_is_exact_on_a_linear_network(method):
    model, task = linear_network(), ids_task()
    wanted = exact(model, task)
    size = wanted.values.abs().max()
    assert size > 0.01
    torch.testing.assert_close(method(model, task).values, wanted.values, rtol=0, atol=float(1e-5 * size))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_the_embeddings_edges_sum_to_the_change_of_the_metric(name, ablation):
    model, task = network(name), ids_task()
    scores = eap_ig(model, task, steps=32, ablation=ablation)
    total = sum(float(v) for (a, _), v in zip(scores.graph.edges, scores.values, strict=True) if a.layer is None)
    if ablation == "resample":
        ends = [
            pc.metrics.logit_difference(task.at_answer(model.run(x).logits), task) for x in (task.clean, task.corrupt)
        ]
        assert total == pytest.approx(float((ends[0] - ends[1]).mean()), rel=0.02)
    assert abs(total) > 0.05


def test_one_senders_edges_sum_to_what_its_ablation_changes():
    model, task = network("llama"), ids_task()
    scores = eap_ig(model, task, of="activations", steps=12)
    site = Site("mlp_out", 1)
    total = sum(float(v) for (a, _), v in zip(scores.graph.edges, scores.values, strict=True) if a == site)
    clean, corrupt = model.run(task.clean), model.run(task.corrupt, record=site)
    patched = model.run(task.clean, do=pc.patch(site, corrupt))
    ends = [pc.metrics.logit_difference(task.at_answer(run.logits), task).mean() for run in (clean, patched, corrupt)]
    assert total == pytest.approx(float(ends[0] - ends[1]), abs=0.02 * float(abs(ends[0] - ends[2])))


def test_the_right_end_of_one_step_is_plain_attribution():
    model, task = network("llama"), ids_task(padded=True)
    torch.testing.assert_close(eap_ig(model, task, steps=1, rule="right").values, eap(model, task).values)
    ends = [eap_ig(model, task, steps=1, rule=rule).values for rule in ("left", "right")]
    torch.testing.assert_close(clean_corrupted(model, task).values, torch.stack(ends).mean(0))


def test_scores_by_place_sum_to_those_without():
    model, task = network("llama"), ids_task()
    graph = pc.circuits.Graph.of(model, positions=6)
    torch.testing.assert_close(eap(model, task, graph).values.sum(1), eap(model, task).values)


def test_batches_change_nothing():
    model, task = network("llama"), ids_task(5, padded=True)
    torch.testing.assert_close(eap_ig(model, task, batch=2).values, eap_ig(model, task).values)


@pytest.mark.parametrize("settings", [{"of": "weights"}, {"rule": "simpson"}, {"steps": 0}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError):
        eap_ig(network("llama"), ids_task(), **settings)
