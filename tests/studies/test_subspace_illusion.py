"""The study end to end: the illusion is found and seen through; nothing is found in random weights."""

import pytest

from patchclamp import studies


@pytest.fixture(scope="module")
def verdict():
    return studies.run("subspace-illusion")


def test_every_claim_holds_on_the_planted_circuit(verdict):
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


def test_the_component_and_its_parts_do_exactly_nothing(verdict):
    """The acceptance's figures: a direction with an effect, both parts of which have none."""
    by_start = {claim.claim[:28]: claim.measured for claim in verdict.claims}
    assert by_start["alignment search finds a dir"] > 0.9
    for start in ("of its two parts, the one th", "nor does the other, in the n", "nor does the whole MLP (at m"):
        assert abs(by_start[start]) < 1e-5


def test_no_finding_holds_on_random_weights_and_all_identities_do():
    verdict = studies.run("subspace-illusion", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}


@pytest.mark.slow
def test_on_another_model_the_identities_are_asked():
    verdict = studies.run("subspace-illusion", model="organism:planted-circuit:pointer")
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {None}
