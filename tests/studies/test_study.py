"""Claims say what they need; a study that could not fail is refused when it is written."""

import pytest

from patchclamp.studies import Measured, Study


def blank():
    return Study(name="doubling", paper="On Doubling (1999)", seed="000.txt", organism="tales")


def test_decorators_add_claims_in_order_and_give_the_function_back():
    study = blank()

    @study.finding("it doubles", at_least=0.9, control="halving")
    def doubles(lab):
        return Measured.number(2, control=1)

    @study.identity("twice is plus", tolerance=1e-6, control="thrice", breaks=0.5)
    def twice(lab):
        return Measured.gap(2, 2, control=(2, 3))

    @study.finding("it halves", at_most=0.1, control="doubling", given=doubles)
    def halves(lab):
        return Measured.number(0, control=1)

    assert [claim.measure for claim in study.claims] == [doubles, twice, halves]
    assert [claim.sentence for claim in study.claims] == [
        "it doubles (at least 0.9; control: halving)",
        "twice is plus (within 1e-06; broken by at least 0.5 by thrice)",
        "it halves (at most 0.1; control: doubling; given that it doubles)",
    ]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"control": "c"}, "one threshold"),
        ({"at_least": 1, "at_most": 2, "control": "c"}, "one threshold"),
        ({"at_least": 1, "control": " "}, "what the finding must beat"),
        ({"at_least": 1, "control": "c", "given": len}, "stands before"),
    ],
)
def test_a_finding_without_threshold_control_or_known_premise_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        blank().finding("x", **options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tolerance": -1}, "no size of an error"),
        ({"tolerance": float("inf")}, "no size of an error"),
        ({"tolerance": 1e-6, "control": "spoilt"}, "both or none"),
        ({"tolerance": 1e-6, "breaks": 1.0}, "both or none"),
        ({"tolerance": 1e-3, "control": "spoilt", "breaks": 1e-3}, "above tolerance"),
    ],
)
def test_an_identity_without_a_size_or_with_half_a_control_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        blank().identity("x", **options)


def test_two_claims_by_one_name_are_refused():
    study = blank()

    def measure(lab):
        return Measured.gap(0, 0)

    study.identity("one", tolerance=0)(measure)
    with pytest.raises(ValueError, match="two claims"):
        study.identity("two", tolerance=0)(measure)
