"""The study end to end: programs are forgotten, the rest is not, nor with the roles swapped, being many skills."""

import pytest

import patchclamp as pc
from patchclamp import studies
from patchclamp.editing import Units
from patchclamp.organisms import truth
from patchclamp.studies.editing.selective_pruning import _share, _texts
from patchclamp.studies.lab import Lab


def test_texts_that_choose_are_not_those_that_judge():
    texts = _texts(Lab(model=None, truth=truth("tales")), 0)
    assert not set(texts.code) & set(texts.code_to_choose)
    assert len(set(texts.rest) & set(texts.rest_to_choose)) < 5  # short texts may come twice


def test_a_share_is_of_all_units_of_its_kind():
    model = pc.load("organism:tales")
    units = Units.of({"mlp_post.1": range(128), "z.0": range(24)})
    lab = Lab(model=model, truth=truth("tales"))
    assert _share(lab, units, "mlp_post") == 128 / 1024 and _share(lab, units, "z") == 24 / 384


@pytest.mark.slow
def test_every_claim_holds_but_that_the_rest_has_units_of_its_own():
    verdict = studies.run("selective-pruning")
    assert [claim.claim.split(" (")[0] for claim in verdict.claims if not claim.holds] == [
        "which a fifth chosen with the roles swapped takes"
    ]


@pytest.mark.slow
def test_no_finding_holds_on_random_weights_and_the_identities_do():
    verdict = studies.run("selective-pruning", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
