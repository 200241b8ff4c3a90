"""The study end to end, and its pieces: rows of each regime, and a dictionary that is left untrained."""

import pytest

from patchclamp import studies
from patchclamp.organisms import Truth
from patchclamp.studies.lab import Lab
from patchclamp.studies.probes import sae_probing_utility as study


def lab(**options):
    return Lab(model=None, truth=Truth(name="planted"), **options)


@pytest.mark.parametrize("regime", ["scarce", *study.REGIMES])
def test_rows_of_a_task_are_of_its_feature(regime):
    x, y, fresh, answers = study._drawn(lab(), regime, 64)
    assert x.shape == (study.DRAWS * study.TASKS, 64, study.WIDTH) and fresh.shape[1] == len(answers) == study.TEST
    assert float(y.sum()) == {"imbalanced": 6}.get(regime, float(y.sum()))
    direction = study._world(lab()).truth().directions[0, 0].float()
    along = fresh[0] @ direction
    assert along[answers > 0].mean() - along[answers == 0].mean() > 0.7


def test_where_rows_are_shifted_another_feature_goes_with_the_label_and_then_against_it():
    x, y, fresh, answers = study._drawn(lab(), "shifted", 64)
    direction = study._world(lab()).truth().directions[0, study.FEATURES - 1].float()
    assert (x[0] @ direction)[y > 0].mean() > (x[0] @ direction)[y == 0].mean() + 0.2
    assert (fresh[0] @ direction)[answers > 0].mean() < (fresh[0] @ direction)[answers == 0].mean() - 0.2


def test_an_untrained_dictionary_knows_no_feature():
    untrained = lab(untrained=True)
    measured = study.the_dictionary_is_good(untrained)
    assert measured.value < 0.8


@pytest.mark.slow
def test_all_but_the_hard_regimes_hold():
    """On planted features latents do help where labels are few or wrong, by about 0.02: reported as it is."""
    verdict = studies.run("sae-probing-utility")
    failed = [claim for claim in verdict.claims if not claim.holds]
    assert [claim.claim.split(":")[0] for claim in failed] == [
        "nor where labels are uneven, wrong, or go with another feature"
    ]
    assert 0.01 < failed[0].measured < 0.04


@pytest.mark.slow
def test_no_finding_holds_where_the_dictionary_was_not_trained():
    verdict = studies.run("sae-probing-utility", model="random")
    assert {claim.holds for claim in verdict.claims} == {False}
