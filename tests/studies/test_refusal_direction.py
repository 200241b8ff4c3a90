"""On the chat model every claim holds but that of perplexity; on random weights no finding does."""

import pytest

from patchclamp import studies


@pytest.mark.slow
def test_it_holds_on_the_chat_model():
    verdict = studies.run("refusal-direction")
    failed = [claim.claim for claim in verdict.claims if not claim.holds]
    assert all("perplexity" in claim for claim in failed)


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("refusal-direction", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
