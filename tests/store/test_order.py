import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.store.order import check_batches, generator, permutation, rebatched


def test_a_key_decides_the_order_and_every_part_of_it_counts():
    assert permutation(50, 0, "epoch", 1).equal(permutation(50, 0, "epoch", 1))
    keys = [(0, "epoch", 1), (1, "epoch", 0), (0, "epoch", 2), (0, "shards", 1), (0, "epoch", 11), (0, "epoch1", 1)]
    orders = {tuple(permutation(50, *key).tolist()) for key in keys}
    assert len(orders) == len(keys)
    assert sorted(permutation(50, 3).tolist()) == list(range(50))


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    permutation(10, 0)
    generator("x")
    assert torch.get_rng_state().equal(before)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_rebatching_keeps_every_row_and_its_place(sizes, size):
    rows = torch.arange(sum(sizes))
    pieces = [(part, -part) for part in rows.split(sizes)] if sizes else []
    batches = list(rebatched(pieces, size))
    assert [len(a) for a, _ in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(0 < len(a) <= size and a.equal(-b) for a, b in batches)
    assert torch.cat([a for a, _ in batches]).equal(rows) if batches else len(rows) == 0


@pytest.mark.parametrize(("size", "epoch", "start"), [(0, 0, 0), (1, -1, 0), (1, 0, -1), (1, 0, 11)])
def test_what_no_reader_can_give_is_an_error(size, epoch, start):
    with pytest.raises(ValueError, match=r"batch|count from 0|counted in rows"):
        check_batches(size, epoch, start, 10)
    check_batches(1, 0, 10, 10)
    check_batches(1, 0, 99, None)
