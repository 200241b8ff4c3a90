"""The study's controls are what they say; on random weights no finding holds."""

import pytest
import torch

from patchclamp import studies
from patchclamp.steering.affine import Maps
from patchclamp.studies.lab import Lab
from patchclamp.studies.steering.lineas import _dealt, _thinned

MAPS = Maps({"resid_post.0": torch.arange(2.0, 202)}, {"resid_post.0": torch.arange(200.0) + 1})


def test_maps_are_dealt_to_other_units_whole():
    dealt = _dealt(Lab(None, None), MAPS)  # type: ignore[arg-type]
    assert not torch.equal(dealt.weights["resid_post.0"], MAPS.weights["resid_post.0"])
    assert torch.equal(dealt.weights["resid_post.0"], dealt.biases["resid_post.0"] + 1)


def test_thinned_maps_leave_the_rest_exactly_alone():
    thinned = _thinned(MAPS, 0.1, 0)
    left = thinned.weights["resid_post.0"] == 1
    assert 0.03 < thinned.changed < 0.2
    assert not thinned.biases["resid_post.0"][left].any()


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("lineas", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
