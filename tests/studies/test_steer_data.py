"""The strings are what they are said to be; all holds on trained models, and on untrained ones no finding does."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.steering import _strings as strings
from patchclamp.studies.steering.steer_data import _matched, _nucleus


def test_a_string_is_repeated_half_of_the_time_and_new_ones_are_of_the_domain_as_often_as_asked():
    texts = strings.texts(4000, torch.Generator().manual_seed(0), 0.6).view(4000, 3, 5)
    assert (texts[:, :, 0] == strings.START).all()
    assert abs(float((texts[:, 0] == texts[:, 1]).all(1).float().mean()) - 0.5) < 0.05
    assert abs(float((texts[:, 0, 1] == texts[:, 0, 4]).float().mean()) - 0.6) < 0.04


def test_probabilities_are_of_strings_of_letters():
    log_p = torch.randn(256, 4, 5, generator=torch.Generator().manual_seed(0))
    log_p[:] = log_p[0]  # the same for every string, so that they sum to one
    assert float(strings.probabilities(log_p).sum()) == pytest.approx(1, abs=1e-6)


def test_a_nucleus_is_the_likeliest_letters_that_reach_its_share():
    log_p = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()
    torch.testing.assert_close(_nucleus(log_p, 0.6).exp(), torch.tensor([0.0, 2 / 3, 1 / 3, 0.0]))
    torch.testing.assert_close(_nucleus(log_p, 0.05).exp(), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(_nucleus(log_p, 1.0), log_p)


def test_a_baseline_is_matched_where_it_is_as_varied():
    wide, inside = torch.full((256,), 1 / 256), strings.DOMAIN / strings.DOMAIN.sum()
    share = float(wide[strings.DOMAIN].sum())
    assert _matched(wide, [inside, wide]) == pytest.approx(share)
    # 64 of the 256 strings are in the domain, and log 128 is between log 64 and log 256.
    assert _matched(torch.full((128,), 1 / 128), [inside, wide]) == pytest.approx((1 + share) / 2, abs=1e-6)


@pytest.mark.slow
def test_all_holds():
    verdict = studies.run("steer-data")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("steer-data", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
