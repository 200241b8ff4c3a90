"""The study end to end, which takes a minute, and its pieces, which take no time."""

import pytest
import torch

from patchclamp import studies
from patchclamp.dictionaries import measures
from patchclamp.studies.dictionaries.amortisation_gap import ACTIVE, SOURCES, WIDTH, _codes, _encoder, _random
from patchclamp.studies.lab import Lab


def test_untrained_pieces_know_nothing_of_the_world():
    from patchclamp.organisms import Truth, planted

    world = planted.sparse_codes(SOURCES, WIDTH, ACTIVE)
    batch = world.sample(500)
    true = torch.as_tensor(world.truth().directions[0]).float()
    lab = Lab(model=None, truth=Truth(name="tales"), untrained=True)  # pyright: ignore[reportArgumentType]
    encoder = _encoder(lab, _random(world, 1), batch, (), 1e-2)
    assert measures.match(encoder.W_dec, true).mean < 0.8
    assert measures.mcc(encoder.encode(batch.activations).dense(), batch.coefficients) < 0.6
    assert measures.mcc(_codes(true, batch.activations), batch.coefficients) > 0.95
    assert measures.mcc(_codes(_random(world, 1), batch.activations), batch.coefficients) < 0.6


@pytest.mark.slow
def test_every_claim_holds_on_planted_codes_and_on_the_stream():
    verdict = studies.run("amortisation-gap")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


@pytest.mark.slow
def test_no_finding_holds_untrained_and_all_identities_do():
    verdict = studies.run("amortisation-gap", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
