"""Every claim holds on fine-tunes of tales; on random weights, whose copies stay as they are, no finding does."""

import random

import pytest

from patchclamp import studies
from patchclamp.organisms.tales import world
from patchclamp.studies.steering.narrow_ft_traces import _document


def test_the_share_of_ordinary_text_is_what_was_asked_for():
    rng = random.Random(0)
    narrow = [_document(rng, "court", 0.0) for _ in range(20)]
    assert all(any(word in document.text for word in world.GENRES["court"]) for document in narrow)
    kinds = [_document(rng, "court", 0.5).kind == "genre" for _ in range(400)]
    assert 0.4 < sum(kinds) / len(kinds) < 0.6


@pytest.mark.slow
def test_it_holds_on_tales():
    verdict = studies.run("narrow-ft-traces")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("narrow-ft-traces", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
