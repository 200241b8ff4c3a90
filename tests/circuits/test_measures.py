"""A circuit alone: all of it is the network, none of it the ablated one; a known circuit is found and faithful."""

import pytest
import torch

import patchclamp as pc
from circuits.cases import ids_task, network
from patchclamp.circuits import Circuit, GraphError, Scores, curve, discover, eap_ig, exact, measure, minimality, select
from patchclamp.circuits.circuit import Circuit as SameCircuit
from patchclamp.circuits.measures import random_circuits
from patchclamp.circuits.scores import auroc

NAME = "planted-circuit:induction"


@pytest.fixture(scope="module")
def planted():
    model, truth = pc.load(f"organism:{NAME}"), pc.organisms.truth(NAME)
    ids, _ = truth.sample(32, seed=0)
    logits = model.run(ids).logits[:, -1]
    top = logits.argmax(-1)
    half = len(ids) // 2
    other = [(row, row + half) for row in range(half) if top[row] != top[row + half]]
    rows, twins = (torch.tensor(part) for part in zip(*other, strict=True))
    task = pc.Task.from_tokens(clean=ids[rows], corrupt=ids[twins], answers=top[rows], wrong=top[twins])
    return model, truth, task, exact(model, task)


def test_the_known_circuit_is_found(planted):
    _, truth, _, scores = planted
    assert scores.auroc(truth.edges, but=("pos_embed",)) > 0.98


def test_the_known_circuit_is_faithful_and_random_ones_are_not(planted):
    model, truth, task, scores = planted
    mask = scores.graph.mask(truth.edges)
    values = measure(model, task, scores.graph, [mask, ~mask, torch.ones_like(mask)])
    assert values.faithfulness(0) > 0.9 and abs(values.faithfulness(1)) < 0.05
    assert values.faithfulness(2) == pytest.approx(1)
    low, high = values.interval(0)
    assert low <= values.faithfulness(0) <= high
    others = random_circuits(model, task, scores.graph, int(mask.sum()), 5)
    controls = measure(model, task, scores.graph, others)
    assert all(int(other.sum()) <= int(mask.sum()) for other in others)
    assert max(controls.faithfulness(index) for index in range(5)) < 0.5


def test_every_edge_of_the_known_circuit_is_needed(planted):
    model, truth, task, scores = planted
    mask = scores.graph.mask([edge for edge in truth.edges if edge[0].kind != "pos_embed"])
    mask |= scores.graph.mask([edge for edge in truth.edges if edge[0].kind == "pos_embed"])
    found = minimality(model, task, scores.graph, mask)
    assert not found[~mask].any()
    tested = torch.tensor([edge in truth.edges and edge[0].kind != "pos_embed" for edge in scores.graph.edges])
    assert float(found[tested].min()) > 0.05


def test_discover_finds_it_and_says_how_faithful_it_is(planted, tmp_path):
    model, _, task, scores = planted
    found = discover(model, task, method=scores, edges=12, random=4)
    assert found.size <= 12 and len(found.measured) == 3
    one = found.measured[0]
    assert one.faithfulness > 0.95 > 0.5 > max(one.random)
    assert {row["ablation"] for row in found.rows()} == {"resample", "mean", "zero"}
    found.save(tmp_path)
    again = Circuit.load(tmp_path)
    assert again.measured == found.measured and again.edges == found.edges and again.graph == found.graph
    assert torch.equal(again.scores.values, found.scores.values)
    assert found.to_networkx().number_of_edges() >= found.size
    assert "faithfulness" in repr(found) and "<table" in found._repr_html_()
    assert SameCircuit is Circuit


def test_the_curve_is_drawn_against_the_size_that_circuits_have(planted):
    model, _, task, scores = planted
    good = curve(model, task, scores, sizes=(0.02, 0.05, 0.1, 0.3))
    bad = curve(model, task, pc.circuits.random_scores(model, task), sizes=(0.02, 0.05, 0.1, 0.3))
    assert list(good.shares) == sorted(set(good.shares))
    assert good.cpr > 0.9 and good.cmd < 0.1
    assert bad.cpr < good.cpr - 0.3 and bad.cmd > good.cmd + 0.3


@pytest.mark.parametrize("how", ["top", "greedy"])
def test_what_is_selected_is_connected_and_no_larger(planted, how):
    _, _, _, scores = planted
    sizes = [int(select(scores, n, how=how).sum()) for n in (5, 10, 20, 40)]
    assert all(size <= n for size, n in zip(sizes, (5, 10, 20, 40), strict=True)) and sizes == sorted(sizes)
    mask = select(scores, 0.2, how=how)
    assert torch.equal(scores.graph.connected(mask), mask)
    with pytest.raises(GraphError, match="edges="):
        select(scores, 0)


def test_nodes_choose_edges_between_them():
    model, task = network("gpt2"), ids_task()
    graph = pc.circuits.Graph.of(model)
    values = torch.zeros(len(graph.senders))
    values[[0, 3, 7]] = torch.tensor([3.0, 2.0, 1.0])
    chosen = select(Scores(graph, values, "by hand", of="nodes"), 30)
    nodes = {graph.senders[index] for index in (0, 3, 7)}
    assert {a for a, _ in graph.chosen(chosen)} <= nodes
    assert exact(model, task, graph).of == "edges"


def test_ties_count_half_and_an_empty_class_is_refused():
    inside = torch.tensor([True, False, False])
    assert auroc(torch.tensor([1.0, 1.0, 1.0]), inside) == 0.5
    assert auroc(torch.tensor([2.0, 1.0, 1.0]), inside) == 1.0
    with pytest.raises(GraphError, match="no curve"):
        auroc(torch.tensor([2.0, 1.0, 1.0]), inside & False)


def test_a_metric_that_does_not_move_has_no_faithfulness():
    model, task = network("gpt2"), ids_task()
    model.hf.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.hf.lm_head.weight))
    with pytest.raises(GraphError, match="nothing to be faithful to"):
        measure(model, task, pc.circuits.Graph.of(model), [])


def test_names_of_methods_are_checked():
    with pytest.raises(GraphError, match="Did you mean 'eap-ig'"):
        discover(network("gpt2"), ids_task(), method="eapig")


@pytest.mark.slow
def test_a_tenth_of_the_edges_of_tales_does_ioi():
    model = pc.load("organism:tales")
    task = pc.tasks.ioi(model, n=64, seed=0)
    found = discover(model, task, method=eap_ig, edges=0.1, ablations=("resample",))
    assert found.share <= 0.1
    assert found.measured[0].faithfulness >= 0.8
    assert max(found.measured[0].random) <= 0.2
