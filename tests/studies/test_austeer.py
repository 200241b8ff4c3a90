"""Planted units are found and steered; few units do in `tales` what the direction does; on random weights none does."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.steering.austeer import BLOCK, UNITS, _Block


def test_a_planted_block_reads_its_units_as_is_said():
    block = _Block(seed=3, size=0.75)
    inputs = {"inputs": block.inputs(-1)}
    run = block.model.run(inputs, record=BLOCK)
    held = run[BLOCK]
    assert held.shape == (100, UNITS) and bool((held >= 0).all())
    torch.testing.assert_close(run.logits[:, 0], held[:, :5].sum(1) - held[:, 5:10].sum(1))
    gained = block.gained()
    assert block.precision(block.chosen) == 1.0 and gained["chosen"][1] < 1e-9 < gained["block"][1]
    assert 0.5 * gained["block"][0] < gained["chosen"][0] and gained["drawn"][0] < gained["chosen"][0]


def test_few_units_do_what_the_direction_does_and_as_published_less():
    claims = {claim.claim: claim for claim in studies.run("austeer").claims}
    failed = [text for text, claim in claims.items() if not claim.holds]
    assert len(failed) == 2 and "gains as much" in failed[0] and "as published" in failed[1]


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("austeer", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
