"""Items are what they are said to be; all but the principal component holds, and on an untrained model no finding."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.lab import Lab
from patchclamp.studies.steering import _shortcut as shortcut
from patchclamp.studies.steering.repe_reasoning import _items, study


def test_the_sum_is_never_the_copy_and_held_out_hints_are_not_in_training():
    generator = torch.Generator().manual_seed(0)
    train, held = (shortcut.drawn(2000, generator, held_out=side) for side in (False, True))
    for ids, sums, _ in (train, held):
        digits = ids[:, 4:6] - 1
        assert torch.equal(sums - 1, digits.sum(1) % shortcut.DIGITS) and not (sums == ids[:, 4]).any()
    met = {tuple(row) for row in train[0][:, 1:4].tolist()}
    assert not met & {tuple(row) for row in held[0][:, 1:4].tolist()}


def test_items_that_judge_are_others_than_those_that_choose():
    lab = Lab(None, None)  # type: ignore[arg-type]
    choose, judge = ({tuple(row) for row in _items(lab, part)[0].tolist()} for part in ("choose", "test"))
    assert choose and judge and not choose & judge


@pytest.mark.slow
def test_all_holds_but_that_the_principal_component_of_pairs_is_what_they_share():
    verdict = studies.run("repe-reasoning")
    failed = [claim for claim in verdict.claims if not claim.holds]
    assert [claim.claim for claim in failed] == [claim.sentence for claim in study.claims if claim.name == "principal"]
    assert failed[0].measured < 0.05 < next(c.measured for c in verdict.claims if "mean difference of pairs" in c.claim)


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("repe-reasoning", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
