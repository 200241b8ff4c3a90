"""The study of nested autoencoders: identities quickly, and all of it, trained and untrained."""

import pytest

from patchclamp import studies
from patchclamp.studies.dictionaries.matryoshka_sae import study
from patchclamp.studies.lab import open_lab


def test_identities_hold_on_random_weights():
    lab = open_lab("tales", model="random", seed=0, full=False, out=None)[0]
    for claim in study.claims:
        if claim.kind == "identity":
            measured = claim.measure(lab.at(claim.name))
            assert measured.value <= claim.threshold and float(measured.control or 0) >= float(claim.breaks or 0)


@pytest.mark.slow
def test_every_claim_holds_and_no_finding_of_what_is_untrained():
    assert [claim.claim for claim in studies.run("matryoshka-sae").claims if not claim.holds] == []
    verdict = studies.run("matryoshka-sae", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
