import numpy as np
import pytest
import torch

from evaluation.worlds import changed, features, truth
from patchclamp.dictionaries.measures import random_dictionary
from patchclamp.evaluation import identity, spurious, targeted, zero
from patchclamp.evaluation.erasure import strongest


def test_ablating_a_features_own_latent_leaves_its_probe_guessing_and_the_others_as_they_were():
    data = features()
    found = targeted(truth(data), data, ns=(1,))["tpp@1"]
    assert np.allclose(found, 0.5, atol=0.01)
    random = targeted(random_dictionary(truth(data)), data, ns=(1,))["tpp@1"]
    assert random.mean() < 0.2


def test_a_dictionary_that_writes_nothing_targets_nothing():
    data = features()
    assert np.all(targeted(zero(16), data, ns=(1, 5))["tpp@5"] == 0.0)


def test_latents_without_effect_are_never_ablated():
    assert strongest(torch.tensor([0.0, 2.0, -1.0, 3.0]), 4).tolist() == [3, 1]


def test_the_mean_of_the_spurious_feature_repairs_the_biased_probe_and_its_absence_does_not():
    """The biased probe decides at the middle of "neither" and "both": with the spurious feature at zero every row is on
    the side of "neither" or on the border, with its mean the wanted feature decides.
    """
    data = features(6000)
    mean = spurious(truth(data), data, wanted=0, unwanted=1, ns=(1,), to="mean")["scr@1"]
    zero = spurious(truth(data), data, wanted=0, unwanted=1, ns=(1,))["scr@1"]
    assert mean[0] == pytest.approx(1.0, abs=0.02)
    assert zero[0] < 0.5


def test_an_ablation_to_anything_else_is_refused():
    with pytest.raises(ValueError, match="'zero' or to their 'mean'"):
        spurious(identity(16), features(), wanted=0, unwanted=1, to="one")


def test_units_repair_less():
    data = features(6000)
    assert spurious(identity(16), data, wanted=0, unwanted=1, ns=(1,), to="mean")["scr@1"][0] < 0.7


def test_where_a_probe_has_lost_nothing_there_is_no_score(monkeypatch):
    """The gap below which nothing can be won back is a number of the module; above 0.5 no probe can be."""
    data = features()
    monkeypatch.setattr("patchclamp.evaluation.erasure.SMALLEST_GAP", 0.51)
    assert np.isnan(spurious(truth(data), data, wanted=0, unwanted=1, ns=(1,))["scr@1"][0])


def test_all_four_kinds_of_rows_are_needed():
    data = features(400)
    never = data[~(data.holds[:, 0] & data.holds[:, 1])]
    with pytest.raises(ValueError, match="both hold in"):
        spurious(truth(data), never, wanted=0, unwanted=1)


def test_the_order_and_the_size_of_latents_do_not_matter():
    data = features()
    one = random_dictionary(truth(data))
    for other in (changed(one, order=torch.tensor([3, 1, 0, 2, 5, 4])), changed(one, scale=3.0)):
        mine, theirs = (targeted(d, data) for d in (one, other))
        assert all(np.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)
