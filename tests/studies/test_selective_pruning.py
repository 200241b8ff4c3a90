"""The study end to end: programs are forgotten, the rest is not; on random weights no finding holds."""

from patchclamp import studies


def test_every_claim_holds():
    verdict = studies.run("selective-pruning")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


def test_no_finding_holds_on_random_weights_and_the_identities_do():
    verdict = studies.run("selective-pruning", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
