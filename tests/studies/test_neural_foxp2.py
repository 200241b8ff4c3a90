"""The two languages say the same; the study holds on the trained model and not on an untrained one."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.steering import _bilingual as bilingual


def test_pairs_say_the_same_in_two_languages_and_share_their_numerals():
    first, second = bilingual.pairs(50, torch.Generator().manual_seed(0))
    same = first == second
    assert torch.equal(same, first <= bilingual.NUMERALS) and torch.isin(second[~same], bilingual.words(1)).all()
    assert not same[:, 4].any() and same[:, :4].all()


def test_the_second_language_is_rare():
    texts = bilingual.texts(2000, torch.Generator().manual_seed(0))
    assert abs(float(torch.isin(texts[:, 4], bilingual.words(1)).float().mean()) - bilingual.SHARE) < 0.03


@pytest.mark.slow
def test_all_holds():
    verdict = studies.run("neural-foxp2")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


def test_on_random_weights_no_finding_holds():
    verdict = studies.run("neural-foxp2", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
