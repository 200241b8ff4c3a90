"""The study end to end: it holds on planted pairs and on the model's statements, no finding on random weights."""

import pytest

from patchclamp import studies
from patchclamp.organisms import Truth
from patchclamp.organisms.tales import world
from patchclamp.studies.lab import Lab
from patchclamp.studies.probes import ccs_md as study


@pytest.mark.slow
def test_every_claim_holds():
    verdict = studies.run("ccs-md")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


@pytest.mark.slow
def test_no_finding_holds_on_random_weights_and_the_identity_does():
    verdict = studies.run("ccs-md", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}


def test_planted_pairs_are_consistent_and_balanced():
    pairs, y = study._planted(Lab(model=None, truth=Truth(name="planted")), 0)
    assert pairs.shape == (study.PAIRS, 2, study.WIDTH) and 0.4 < float(y.mean()) < 0.6
    assert float((pairs[:, 0] - pairs[:, 1])[y > 0].mean(0).norm()) > 0.8


def test_statements_and_their_negations_are_of_the_numbered_city_and_half_are_true():
    texts, true, cities = study._statements()
    assert float(true.mean()) == 0.5 and len(texts) == len(cities) == len(true)
    named = [{plain.split(" is in ")[0].split()[-1], no.split(" is not in ")[0].split()[-1]} for plain, no in texts]
    assert named == [{list(world.CAPITALS)[int(number)]} for number in cities]
