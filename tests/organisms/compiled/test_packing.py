"""Codes: unit vectors, fewer dimensions than values, never closer than a reader bears; and who may have one."""

import pytest
import torch

from patchclamp.organisms.compiled.packing import WORST, code, overlap, packing
from patchclamp.organisms.compiled.programs import program


@pytest.mark.parametrize("values", [1, 2, 3, 5, 8, 12, 13])
def test_codes_are_unit_vectors_that_are_far_enough_apart(values):
    found = code(values, 0)
    assert len(found) == values and torch.allclose(found.norm(dim=-1), torch.ones(values).double())
    assert overlap(found) <= WORST
    assert found.shape[1] < values or values == 1
    assert found.shape[1] <= max(1, values // 2) or values == 3


def test_the_seed_decides():
    assert torch.equal(code(8, 0), code.__wrapped__(8, 0)) and not torch.equal(code(8, 0), code(8, 1))


def test_overlap_is_the_worst_pair():
    assert overlap(torch.eye(3).double()) == 0
    assert overlap(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 0
    assert overlap(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])) == pytest.approx(0.8)


def test_what_a_head_compares_or_moves_shares_a_code():
    found = program("induction")
    groups, kept = packing(found)
    names = [{found.names[member] for member in group} for group in groups]
    assert {"tokens", "before", "prediction"} in names
    assert [found.names[member] for member in kept] == ["indices"]
