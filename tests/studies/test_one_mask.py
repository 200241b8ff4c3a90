"""The study end to end: planted traces are found; on random weights no finding holds. Its memory is as it says."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.editing._planted_edits import EDITS, PLANTED, Memory


def test_planted_edits_take_and_are_on_the_planted_inputs():
    memory = Memory.draw(torch.Generator().manual_seed(3))
    ones, rows = torch.ones_like(memory.weight), torch.arange(EDITS)
    assert torch.equal(memory.logits(ones, rows).argmax(1), memory.new[:EDITS])
    assert len(memory.rights.abs().sum(0).nonzero()) == PLANTED
    unedited = memory.keys @ memory.weight.T @ memory.answers.T
    assert float((unedited.argmax(1) == memory.old).double().mean()) > 0.98
    planted = torch.ones_like(memory.weight)
    planted[:, memory.planted] = 0
    assert memory.precision(planted) == memory.recall(planted) == 1
    assert float(memory.reverted(planted).double().mean()) > 0.95
    assert not memory.reverted(ones).any()


@pytest.mark.slow
def test_planted_traces_are_found():
    verdict = studies.run("one-mask")
    planted = [claim for claim in verdict.claims if "planted" in claim.claim or claim.kind == "identity"]
    assert len(planted) == 5 and all(claim.holds for claim in planted)


@pytest.mark.slow
def test_no_finding_holds_on_random_weights_and_the_identity_does():
    verdict = studies.run("one-mask", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
