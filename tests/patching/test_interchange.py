"""Needs and sufficiencies are those of the sweep; written heads are significant, and heads of zeros are not."""

import numpy as np
import pytest

import patchclamp as pc
from patchclamp.organisms.compiled.hand_induction import hand_induction, hand_induction_task
from patchclamp.patching.interchange import holm, interchange
from patching import cases


@pytest.fixture(scope="module")
def found():
    model, task = hand_induction(), hand_induction_task(12)
    return model, task, interchange(model, task, permutations=500)


def test_effects_are_those_of_sweeps(found):
    model, task, table = found
    suffices = pc.patching.sweep(model, task, "z.*.*", positions="all")
    needed = 1 - pc.patching.sweep(model, task, "z.*.*", positions="all", direction="noise")
    assert table["sufficiency"].dims == ("layer", "head")
    assert np.allclose(table["sufficiency"], suffices, atol=1e-4) and np.allclose(table["necessity"], needed, atol=1e-4)


def test_the_written_heads_are_significant_and_no_other(found):
    _, _, table = found
    planted = np.zeros((2, 4), dtype=bool)
    planted[0, 0] = planted[1, 0] = planted[1, 1] = True
    assert ((table["necessity_holm"].values < 0.05) == planted).all()
    assert (table["necessity_p"].values[~planted] == 1).all()
    assert (table["necessity_holm"] >= table["necessity_p"]).all()


def test_few_prompts_and_mixed_kinds_are_refused():
    with pytest.raises(ValueError, match="sign flips"):
        interchange(cases.model("gpt2"), cases.task())
    with pytest.raises(ValueError, match="several kinds"):
        interchange(hand_induction(), hand_induction_task(6), ["z.0.0", "mlp_out.0"], permutations=10)


def test_holm_is_monotone_and_bounded():
    assert np.allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    assert (holm(np.array([0.9, 0.8])) == 1).all()
