"""The study's controls are what they say; on random weights no finding holds."""

from collections import Counter

import pytest
import torch

from patchclamp import studies
from patchclamp.organisms.tales import world
from patchclamp.steering.affine import Maps
from patchclamp.studies.lab import Lab
from patchclamp.studies.steering.lineas import _dealt, _sides, _thinned

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


def test_rude_and_polite_sentences_have_the_same_frames_and_other_words():
    tone = {*world.RUDE, *world.INSULTS, *world.POLITE, *world.KINDNESSES}

    def frames(texts: list[str]) -> Counter[str]:
        return Counter(" ".join("_" if word.strip("!.") in tone else word for word in text.split()) for text in texts)

    lab = Lab(None, None)  # type: ignore[arg-type]
    (rude, polite), (others, _) = _sides(lab), _sides(lab, fit=False)
    assert len(rude) == len(polite) == 32 and len(others) == 128
    assert frames(rude) == frames(polite) and rude != polite
    assert not any(word in text for text in rude for word in world.KINDNESSES)
    assert not any(word in text for text in polite for word in world.INSULTS)


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("lineas", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
