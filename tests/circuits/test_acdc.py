"""ACDC: the known circuit is what is left, and each score is the change at its turn."""

import pytest
import torch

import patchclamp as pc
from circuits.cases import ids_task, network
from patchclamp.circuits import acdc, measure
from patchclamp.circuits.bench import known


def test_what_is_left_is_the_known_circuit():
    case = known("planted-circuit:induction", prompts=8)
    scores = acdc(case.model, case.task, threshold=0.1)
    left = scores.values >= scores.settings["cut"]
    assert set(scores.graph.chosen(left)) <= case.edges
    values = measure(case.model, case.task, scores.graph, [left])
    assert values.faithfulness() > 0.8


def test_each_score_is_the_change_of_its_turn():
    model, task = network("llama"), ids_task()
    scores = acdc(model, task, threshold=0.05)
    graph, cut = scores.graph, scores.settings["cut"]
    order = sorted(range(len(graph.edges)), key=lambda n: (-int(graph.pairs[1, n]), -int(graph.pairs[0, n])))
    mask = torch.ones(graph.shape, dtype=torch.bool)
    for number in order[:6]:
        before = measure(model, task, graph, [mask]).kept.mean()
        mask[number] = False
        change = abs(float(before - measure(model, task, graph, [mask]).kept.mean()))
        assert float(scores.values[number]) == pytest.approx(change, abs=1e-5)
        mask[number] = change >= cut
    kept = scores.values >= cut
    clean = pc.metrics.logit_difference(task.at_answer(model.run(task.clean).logits), task).mean()
    assert float(measure(model, task, graph, [kept]).kept.mean()) != pytest.approx(float(clean), abs=1e-9)


def test_a_threshold_is_above_zero():
    with pytest.raises(ValueError, match="threshold"):
        acdc(network("llama"), ids_task(), threshold=0)
