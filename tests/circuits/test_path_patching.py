"""Paths: direct ones are single edges, all of them together are the whole exchange, frozen ones carry nothing."""

import pytest
import torch

import patchclamp as pc
from circuits.cases import ids_task, network
from patchclamp.circuits import GraphError, exact, path_effect, path_patching
from patchclamp.circuits.graph import Graph
from patchclamp.sites import Site, SiteError


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_direct_paths_are_edges(name):
    model, task = network(name), ids_task()
    scores, edges = path_patching(model, task, receivers=["logits"]), exact(model, task)
    for index, sender in enumerate(scores.graph.senders):
        edge = edges.values[edges.graph.index[sender, Site("logits")]]
        torch.testing.assert_close(scores.values[index], edge, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_all_paths_together_are_the_whole_exchange(name):
    model, task = network(name), ids_task()
    found = path_effect(model, task, ["embed"], ["logits"], through=["z.*.*", "mlp_out.*"])
    ends = [pc.metrics.logit_difference(task.at_answer(model.run(x).logits), task) for x in (task.clean, task.corrupt)]
    torch.testing.assert_close(found, ends[0] - ends[1])


def test_a_path_through_one_component_is_its_hand_made_composition():
    model, task = network("llama"), ids_task()
    clean, corrupt = (
        model.run(task.clean, record=["mlp_out.1", "head_out.0"]),
        model.run(task.corrupt, record="head_out.0"),
    )
    head = corrupt["head_out.0"][:, :, 2] - clean["head_out.0"][:, :, 2]
    reached = model.run(task.clean, do=pc.add("resid_mid.1", head), record="mlp_out.1")["mlp_out.1"]
    last = model.run(task.clean, record="resid_post.2")["resid_post.2"] + head + reached - clean["mlp_out.1"]
    # The receiver reads the head and the MLP it passes; heads in between write what they wrote.
    logits = model.run(task.clean, do=pc.patch("resid_post.2", last)).logits
    wanted = pc.metrics.logit_difference(task.at_answer(clean.logits), task)
    wanted = wanted - pc.metrics.logit_difference(task.at_answer(logits), task)
    found = path_effect(model, task, ["z.0.2"], ["logits"], through=["mlp_out.1"])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_names_that_are_no_senders_or_receivers_are_refused():
    model, task = network("llama"), ids_task()
    with pytest.raises(SiteError, match=r"q\.0\.0 is none of"):
        path_effect(model, task, ["q.0.0"], ["logits"])
    with pytest.raises(GraphError, match="all positions"):
        path_patching(model, task, Graph.of(model, positions=6))
