"""The study end to end: identities to rounding, findings on the hand-written circuit and not on random weights."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.circuits.para_attention import rotation, sinusoids


def test_every_claim_holds_on_the_hand_written_circuit(tmp_path):
    verdict = studies.run("para-attention", out=tmp_path)
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []
    assert len(verdict.figures) == 1
    exact = [claim for claim in verdict.claims if "frozen patterns" in claim.claim or "GPT-2" in claim.claim]
    assert len(exact) == 2 and all(claim.measured < 1e-10 and claim.control > 1e-3 for claim in exact)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_finding_holds_on_random_weights_and_all_identities_do(seed):
    verdict = studies.run("para-attention", model="random", seed=seed)
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}


def test_sinusoids_turn_by_a_rotation():
    r = rotation(5)
    torch.testing.assert_close(r @ r.T, torch.eye(32, dtype=torch.double), rtol=0, atol=1e-12)
    torch.testing.assert_close(sinusoids(torch.tensor([3])) @ r, sinusoids(torch.tensor([8])), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_on_tales_paths_sum_to_the_logits_too():
    verdict = studies.run("para-attention", model="organism:tales")
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
