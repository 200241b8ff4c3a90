"""The study end to end: modes help and come off without a trace; without training nothing is found."""

from patchclamp import studies


def test_gains_and_thresholds_make_a_mode():
    verdict = studies.run("dopamine-taugate")
    assert verdict.holds and len(verdict.claims) == 7


def test_no_finding_holds_on_random_weights_and_the_identity_does():
    verdict = studies.run("dopamine-taugate", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
