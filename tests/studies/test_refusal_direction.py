"""On the chat model all holds but, by a hair, that nine in ten harmless requests are refused; at random none does."""

import pytest

from patchclamp import studies

MISSED = "with the direction added harmless requests are refused"  # 52 of 60 on the shipped weights, where 54 are asked


@pytest.mark.slow
def test_it_holds_on_the_chat_model():
    verdict = studies.run("refusal-direction")
    assert all(claim.claim.startswith(MISSED) for claim in verdict.claims if not claim.holds)
    (added,) = [claim for claim in verdict.claims if claim.claim.startswith(MISSED)]
    assert added.measured > 0.75 and added.control < 0.2


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("refusal-direction", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
