"""The study of ITDA: its pieces quickly, and the whole of it on `tales` and on random weights."""

import math

import pytest

from patchclamp import studies
from patchclamp.studies.dictionaries.itda import Trained, autoencoder_works, explains_as_much, study, takes_little_time
from patchclamp.studies.lab import open_lab


@pytest.fixture
def lab():
    return open_lab("tales", model="random", seed=0, full=False, out=None)[0]


def test_where_nothing_is_trained_nothing_was_quick(lab):
    assert math.isnan(takes_little_time(lab.at("a")).value)
    assert autoencoder_works(lab.at("b")).value < 0.3
    measured = explains_as_much(lab.at("c"))
    assert measured.value <= measured.control_interval[1]  # random atoms are one of the controls


def test_identities_hold_on_random_weights(lab):
    for claim in study.claims:
        if claim.kind == "identity":
            measured = claim.measure(lab.at(claim.name))
            assert measured.value <= claim.threshold
            assert claim.breaks is None or measured.control >= claim.breaks


def test_the_time_that_the_autoencoder_needs_for_as_much_is_the_control(lab, monkeypatch):
    """An autoencoder whose curve passes ITDA's at half of its time."""
    from patchclamp.studies.dictionaries import itda

    grown = itda._grown(lab)
    curve = ((1.0, -100.0), (5.0, itda._explained(lab, grown.atoms)), (10.0, 1.0))
    trained = Trained(grown.atoms, 10.0, curve)
    lab.shared[(itda._trained,)] = trained
    measured = takes_little_time(lab)
    assert measured.value == 0.0 and measured.control == 0.5


@pytest.mark.slow
def test_every_claim_holds_on_tales_and_no_finding_on_random_weights():
    verdict = studies.run("itda")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []
    verdict = studies.run("itda", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
