"""The study end to end: planted units are found; on random weights no finding holds."""

import pytest

from patchclamp import studies


@pytest.mark.slow
def test_planted_units_are_found_and_random_ones_do_little():
    claims = {claim.claim: claim for claim in studies.run("austeer").claims}
    assert all(claim.holds for text, claim in claims.items() if "planted" in text or claim.kind == "identity")


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("austeer", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
