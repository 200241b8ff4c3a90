"""Edge pruning, node patching, information flow and random scores."""

import pytest
import torch

import patchclamp as pc
from circuits.cases import ids_task, network
from patchclamp.circuits import edge_pruning, information_flow, node_patching, random_scores
from patchclamp.circuits.bench import known
from patchclamp.circuits.edge_pruning import HIGH, LOW, TEMPERATURE, probability
from patchclamp.circuits.graph import Graph, GraphError
from patchclamp.sites import Site


def test_the_probability_of_an_open_gate_is_that_of_the_hard_concrete_distribution():
    log_odds = torch.tensor([-2.0, 0.0, 1.5])
    uniform = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0))
    gate = ((uniform.log() - (-uniform).log1p() + log_odds) / TEMPERATURE).sigmoid() * (HIGH - LOW) + LOW
    torch.testing.assert_close((gate > 0).float().mean(0), probability(log_odds), atol=5e-3, rtol=0)


def test_a_mask_is_trained_towards_the_known_circuit_and_repeats():
    case = known("planted-circuit:induction", prompts=8)
    one, two = (edge_pruning(case.model, case.task, edges=0.1, steps=25, seed=3) for _ in range(2))
    assert torch.equal(one.values, two.values)
    assert case.auroc(one) > 0.75
    with pytest.raises(ValueError, match="share"):
        edge_pruning(case.model, case.task, edges=2)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_nodes_are_patched_whole(direction):
    model, task = network("llama"), ids_task()
    scores = node_patching(model, task, direction=direction)
    ends = (task.clean, task.corrupt) if direction == "noise" else (task.corrupt, task.clean)
    base, other = model.run(ends[0]), model.run(ends[1], record=["z.1", "mlp_out.2", "embed"])
    for name in ("z.1.2", "mlp_out.2", "embed"):
        out = model.run(ends[0], do=pc.patch(name, other)).logits
        values = [pc.metrics.logit_difference(task.at_answer(x), task).mean() for x in (base.logits, out)]
        (site,) = model.sites(name)
        wanted = float(values[0] - values[1]) * (1 if direction == "noise" else -1)
        assert float(scores.values[scores.graph.senders.index(site)]) == pytest.approx(wanted, abs=1e-5)


def test_nodes_by_position():
    model, task = network("llama"), ids_task()
    scores = node_patching(model, task, Graph.of(model, positions=6))
    assert scores.values.shape == (len(scores.graph.senders), 6) and not scores.values[:, 0].any()
    with pytest.raises(GraphError, match="at each"):
        node_patching(model, task, Graph.of(model, positions=task))


def test_shares_of_what_is_read_sum_to_one():
    model, task = network("llama"), ids_task(padded=True)
    scores = information_flow(model, task)
    matrix = scores.graph.matrix(scores.values)[:, :, 0]
    torch.testing.assert_close(matrix.sum(0), torch.ones(len(scores.graph.readers)))
    assert float(matrix.min()) >= 0
    model.hf.model.layers[1].mlp.down_proj.weight.data *= 1e3  # now nearly all of what is read behind it
    loud = information_flow(model, task)
    assert float(loud.values[loud.graph.index[Site("mlp_out", 1), Site("v", 2, 0)]]) > 0.95


def test_random_scores_are_those_of_their_seed():
    model, task = network("gpt2"), ids_task()
    assert torch.equal(random_scores(model, task, seed=1).values, random_scores(model, task, seed=1).values)
    assert not torch.equal(random_scores(model, task, seed=1).values, random_scores(model, task, seed=2).values)
