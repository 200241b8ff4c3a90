"""Genres and tones hold on tales; function vectors do not, both kinds being near the ceiling."""

import pytest

from patchclamp import studies
from patchclamp.studies.steering.mean_centring import _question, _share


def test_a_share_is_of_the_words_that_somebody_owns():
    owner = {"ship": "sea", "wave": "sea", "judge": "court"}
    assert _share(" We saw a ship and a Judge. The wave!", "sea", owner) == pytest.approx(2 / 3)
    assert _share(" We saw nothing.", "sea", owner) == 0.0


def test_a_question_ends_where_its_answer_would_begin():
    assert _question("Q: hot A: cold\nQ: big A: small") == "Q: hot A: cold\nQ: big A:"


@pytest.mark.slow
def test_it_holds_on_tales_but_for_function_vectors():
    verdict = studies.run("mean-centring")
    failed = [claim.claim for claim in verdict.claims if not claim.holds]
    assert len(failed) == 1 and "function vectors" in failed[0]


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("mean-centring", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
