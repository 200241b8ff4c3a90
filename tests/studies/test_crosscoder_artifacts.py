"""The study end to end on `tales` and its chat sibling, and on random weights; its own pieces."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.dictionaries.crosscoder_artifacts import _area


@pytest.mark.slow
def test_every_claim_holds_on_tales(tmp_path):
    verdict = studies.run("crosscoder-artifacts", out=tmp_path)
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []
    assert len(verdict.figures) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_finding_holds_on_random_weights_and_the_identity_does(seed):
    verdict = studies.run("crosscoder-artifacts", model="random", seed=seed)
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}


def test_the_area_under_the_curve():
    scores, positive = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([False, False, True, True])
    assert _area(scores, positive) == 1 and _area(-scores, positive) == 0
    assert _area(torch.zeros(4), positive) == 0.5
    assert torch.tensor(_area(scores, torch.zeros(4, dtype=torch.bool))).isnan()
