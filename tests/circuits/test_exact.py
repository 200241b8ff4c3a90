"""Exact edge patching is one run of the network for each edge, whatever is left out on the way."""

import pytest
import torch

import patchclamp as pc
from circuits.cases import ids_task, network
from patchclamp.circuits import GraphError, exact
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.wiring import sides
from patchclamp.organisms.compiled.edges import ablate_edges


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {}),
        ("gptj", {"ablation": "mean"}),
        ("gemma2", {"direction": "denoise"}),
        ("mixtral", {}),
        ("lfm2", {"ablation": "zero"}),
    ],
)
def test_every_edge_is_a_run_of_its_own(name, settings):
    model, task = network(name), ids_task()
    graph = Graph.of(model)
    scores = exact(model, task, graph, **settings)
    noise = settings.get("direction") != "denoise"
    asked = (
        task
        if noise
        else pc.Task.from_tokens(clean=task.corrupt, corrupt=task.clean, answers=task.answers, wrong=task.wrong)
    )
    side = next(sides(model, graph, asked, ablation=settings.get("ablation", "resample")))
    base = pc.metrics.logit_difference(side.clean.logits, task).mean()
    for index in range(0, len(graph.edges), 9):
        mask = torch.ones(graph.shape)
        mask[index] = 0
        with torch.no_grad():
            cut = side.wiring.run(keep=graph.matrix(mask.double()), other=side.other).logits
        effect = base - pc.metrics.logit_difference(cut, task).mean()
        assert float(scores.values[index]) == pytest.approx(float(effect if noise else -effect), abs=2e-6)
    assert scores.values.abs().max() > 0.01


def test_it_equals_the_loop_over_the_models_own_streams():
    model, task = network("gpt2"), ids_task()
    scores = exact(model, task, ablation="zero")
    base = pc.metrics.logit_difference(task.at_answer(model.run(task.clean).logits), task)
    for sender, reader, logits in ablate_edges(model, task.clean, to="zero"):
        effect = (base - pc.metrics.logit_difference(task.at_answer(logits), task)).mean()
        assert float(scores.values[scores.graph.index[sender, reader]]) == pytest.approx(float(effect), abs=1e-6)


def test_batches_and_rows_change_nothing():
    model, task = network("llama"), ids_task(5, padded=True)
    whole, cut = exact(model, task), exact(model, task, batch=2, rows=7)
    torch.testing.assert_close(whole.values, cut.values)


def test_each_place_alone():
    model, task = network("llama"), ids_task()
    graph = Graph.of(model, positions=6)
    scores = exact(model, task, graph)
    side = next(sides(model, graph, task))
    base = pc.metrics.logit_difference(side.clean.logits, task).mean()
    for index, place in ((3, 1), (60, 3), (100, 5), (len(graph.edges) - 1, 5)):
        mask = torch.ones(graph.shape)
        mask[index, place] = 0
        with torch.no_grad():
            cut = side.wiring.run(keep=graph.matrix(mask.double()), other=side.other).logits
        effect = base - pc.metrics.logit_difference(cut, task).mean()
        assert float(scores.values[index, place]) == pytest.approx(float(effect), abs=1e-6)
    assert not scores.values[:, 0].any()  # both prompts are the same there


def test_another_models_graph_is_refused():
    with pytest.raises(GraphError, match="graph of gpt2"):
        exact(network("llama"), ids_task(), Graph.of(network("gpt2")))
