"""The study end to end: it holds on planted pairs and on the model's statements, no finding on random weights."""

from patchclamp import studies


def test_every_claim_holds():
    verdict = studies.run("ccs-md")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


def test_no_finding_holds_on_random_weights_and_the_identity_does():
    verdict = studies.run("ccs-md", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
