"""The study end to end on `tales` and on random weights, and its own pieces."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.dictionaries.transcoders import Rows


@pytest.mark.slow
def test_every_claim_holds_on_tales(tmp_path):
    verdict = studies.run("transcoders", out=tmp_path)
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []
    assert len(verdict.figures) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_finding_holds_on_random_weights_and_all_identities_do(seed):
    verdict = studies.run("transcoders", model="random", seed=seed)
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}


def test_rows_come_in_step_and_again_with_the_same_seed():
    x = torch.arange(10.0)[:, None]
    rows = Rows(held=(x, -x))
    batches = list(rows.batches(4, seed=1, epoch=2))
    assert [len(a) for a, _ in batches] == [4, 4, 2] and all(torch.equal(a, -b) for a, b in batches)
    again = list(rows.batches(4, seed=1, epoch=2, start=4))
    assert torch.equal(torch.cat([a for a, _ in batches])[4:], torch.cat([a for a, _ in again]))
