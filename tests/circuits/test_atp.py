"""AtP* mends what AtP misses: saturated attention, and effects that cancel in the gradient."""

import pytest
import torch

from circuits.cases import ids_task, network
from patchclamp.circuits import atp, atp_star, eap, exact, false_negative_bound
from patchclamp.circuits.bench import known
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.wiring import sides


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss"])
def test_the_qk_fix_changes_queries_and_keys_alone_and_for_the_better(name):
    model, task = network(name), ids_task()
    wanted, plain, fixed = exact(model, task), eap(model, task), atp_star(model, task, drop=False)
    inside = torch.tensor([reader.kind in "qk" for _, reader in wanted.graph.edges])
    torch.testing.assert_close(fixed.values[~inside], plain.values[~inside], rtol=1e-4, atol=1e-6)
    errors = [(scores.values - wanted.values)[inside].abs().mean() for scores in (fixed, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_planted_saturated_attention_is_missed_by_atp_and_not_by_atp_star():
    case = known("compiled:induction", nats=None)
    plain, fixed = eap(case.model, case.task), atp_star(case.model, case.task)
    edges = [edge for edge, tested in zip(plain.graph.edges, case.tested.tolist(), strict=True) if tested]
    saturated = [edge for edge in edges if edge in case.edges and edge[1].kind in "qk"]
    least = 0.01 * float(exact(case.model, case.task).values.abs().max())
    missed = [sum(abs(float(s.values[s.graph.index[edge]])) < least for edge in saturated) for s in (plain, fixed)]
    assert missed[0] >= 2 and missed[1] == 0
    assert case.auroc(fixed) > case.auroc(plain)


def test_patterns_by_place_are_those_of_the_exchanged_places():
    model, task = network("llama"), ids_task()
    placed, whole = (atp_star(model, task, Graph.of(model, positions=n), drop=False) for n in (6, None))
    rows = torch.tensor([reader.kind != "k" for _, reader in whole.graph.edges])
    torch.testing.assert_close(placed.values.sum(1)[rows], whole.values[rows])
    # One key alone: its column of scores is exact, so that far from saturation attribution agrees.
    wanted = exact(model, task, placed.graph)
    keys = torch.tensor([reader.kind == "k" for _, reader in whole.graph.edges])
    fixed, plain = ((s.values - wanted.values)[keys].abs().mean() for s in (placed, eap(model, task, placed.graph)))
    assert fixed < plain


def test_a_dropped_layer_takes_its_paths_out_of_the_gradient():
    model, task = network("llama"), ids_task()
    graph = Graph.of(model)
    side = next(sides(model, graph, task))
    run = side.wiring.run(nudged=True)
    value = run.logits[:, 3].sum()
    for layer in range(3):
        streams, _ = run.gradients(value, drop=layer, again=True)
        for readers, gradient in streams:
            own = graph.readers[readers[0]]
            assert bool(gradient.any()) == (own.layer != layer)
    whole, _ = run.gradients(value, again=True)
    again, _ = run.gradients(value, again=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(whole, again, strict=True))


def test_effects_that_cancel_in_the_gradient_are_found():
    """Layer 1's MLP takes back what the embedding writes to the logits: AtP sees nothing of it, GradDrop does."""
    model, task = network("llama"), ids_task()
    signed, sizes = atp(model, task), atp_star(model, task, of="nodes")
    assert signed.of == sizes.of == "nodes"
    assert bool((sizes.values >= 0).all()) and bool((signed.values < 0).any())
    graph = signed.graph
    summed = graph.matrix(eap(model, task).values).sum(1)[:, 0]
    torch.testing.assert_close(signed.values, summed)


def test_the_bound_holds_where_effects_add_up():
    case = known("compiled:induction", nats=None)
    plain, wanted = eap(case.model, case.task), exact(case.model, case.task)
    verified = plain.values.abs() > 1e-3
    bound = false_negative_bound(case.model, case.task, wanted.graph, verified, seed=0)
    missed = wanted.values.abs().masked_fill(verified, 0)
    assert float(bound.upper[int(missed.argmax())]) >= 0.9 * float(missed.max()) > 0.1
    nothing = false_negative_bound(case.model, case.task, wanted.graph, wanted.values.abs() > 1e-3, seed=0)
    assert nothing.most < 1e-3
    assert bool((bound.upper[verified] == 0).all())
    assert bound.most == float(bound.upper.max())
