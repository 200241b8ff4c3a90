"""The pieces of the study are quick; its claims on `tales` and on random weights take a minute together."""

import pytest
import torch

import patchclamp as pc
from patchclamp import studies
from patchclamp.organisms import Truth
from patchclamp.sites import Site
from patchclamp.studies import Lab
from patchclamp.studies.circuits import circuit_reuse
from patchclamp.studies.circuits.circuit_reuse import _asked, _look, _right


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales@2048")


@pytest.fixture(scope="module")
def task(model):
    return pc.tasks.colored_objects(model, n=24, seed=3)


def test_the_asked_colour_stands_before_the_asked_object(task):
    prompts = torch.arange(len(task))
    assert (task.clean[prompts, _asked(task)] == task.answers[:, 0]).all()
    assert (task.clean[prompts, _asked(task) + 1] == task.clean[prompts, task.labels["QUERY"]]).all()


def test_a_head_looks_where_it_is_told(model, task):
    head = Site("z", 1, 2)
    run = model.run(task.clean, attention_mask=task.mask, do=[_look(head, task, _asked(task))], record="pattern.1")
    plain = model.run(task.clean, attention_mask=task.mask, record="pattern.1")
    prompts = torch.arange(len(task))
    assert (run["pattern.1"][prompts, 2, task.positions, _asked(task)] == 1).all()
    assert torch.equal(run["pattern.1"][:, :2], plain["pattern.1"][:, :2])
    assert torch.equal(run["pattern.1"][:, 2, :-1], plain["pattern.1"][:, 2, :-1])


def test_at_this_checkpoint_colours_are_not_yet_learned_and_sequences_are(model, task):
    assert 0.4 < float(_right(model, task).mean()) < 0.8
    assert float(_right(model, pc.tasks.induction(model, n=24, seed=3)).mean()) > 0.95


@pytest.mark.slow
def test_claims_on_tales():
    """On this network both circuits are small and faithful, and the repair works; what is shared is no more than
    chance shares, so that the paper's claims of overlap do not hold.
    """
    verdict = studies.run("circuit-reuse")
    holds = {claim.claim.split(" (")[0]: claim.holds for claim in verdict.claims}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
    for claim in (
        "the model does both tasks",
        "at most 10 % of the edges do indirect objects alone",
        "at most 10 % of the edges do coloured objects alone",
        "random circuits of that size do neither",
        "heads that repeat sequences, told where to look, repair coloured objects",
    ):
        assert holds[claim], claim


@pytest.mark.slow
def test_no_finding_holds_on_random_weights_and_all_identities_do():
    verdict = studies.run("circuit-reuse", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}


def test_edges_of_a_large_graph_are_scored_by_gradients_and_the_verdict_says_so(model, task, monkeypatch):
    lab = Lab(model, Truth(""))
    few = circuit_reuse._circuit(lab, model, task[:2])
    assert few.scores.method == "exact" and not lab.used
    monkeypatch.setattr(circuit_reuse, "CUT", few.graph.size - 1)
    assert circuit_reuse._circuit(lab, model, task[:2]).scores.method == "eap-ig" and len(lab.used) == 1
