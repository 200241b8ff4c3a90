"""Positions count real tokens: the same under any padding, and out of range is an error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.positions import Frame, PositionError, span

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=4)


def frame_of(rows: list[tuple[int, int, int]]) -> Frame:
    width = max(sum(row) for row in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, (left, count, _) in enumerate(rows):
        mask[index, left : left + count] = 1
    return Frame.of_mask(mask)


@given(ROWS, st.integers(-7, 7))
def test_a_position_is_that_token_of_each_prompt(rows, pos):
    frame = frame_of(rows)
    if any(not -count <= pos < count for _, count, _ in rows):
        with pytest.raises(PositionError, match="which has"):
            frame.columns(pos)
        return
    columns = frame.columns(pos)
    assert columns[:, 0].tolist() == [left + (pos if pos >= 0 else count + pos) for left, count, _ in rows]
    assert torch.equal(
        frame.logical(torch.arange(len(rows)), columns[:, 0]), torch.tensor([pos % c for _, c, _ in rows])
    )


@given(ROWS, st.integers(0, 5), st.integers(1, 4))
def test_columns_and_positions_within_prompts_are_inverse(rows, start, new):
    frame = frame_of(rows)
    index = torch.arange(len(rows))
    logical = torch.tensor([min(start, count - 1) for _, count, _ in rows])
    assert torch.equal(frame.logical(index, frame.column(index, logical)), logical)
    generated = torch.full_like(index, frame.prompt + new)
    assert torch.equal(frame.column(index, frame.logical(index, generated)), generated)


@given(ROWS)
def test_everything_is_every_real_token_once(rows):
    frame = frame_of(rows)
    row, local, ordinal = frame.local(frame.everything)
    chosen = torch.zeros_like(frame.mask)
    chosen[row, local] = True
    assert torch.equal(chosen, frame.mask) and len(row) == int(frame.mask.sum())
    assert torch.equal(ordinal, frame.logical(row, local))
    assert torch.equal(frame.real, frame.mask)


def test_slices_masks_and_spans():
    frame = frame_of([(2, 5, 0), (0, 4, 0)])
    assert frame.columns(slice(1, -1)).tolist() == [[3, 4, 5], [1, 2, -1]]
    assert frame.columns(slice(None, None, 2)).tolist() == [[2, 4, 6], [0, 2, -1]]
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 3] = mask[1, 1] = mask[1, 3] = True
    assert frame.columns(mask).tolist() == [[3, -1], [1, 3]]
    for wrong in (
        slice(0, 5),
        slice(3, 1),
        slice(None, None, -1),
        slice(-5, None),
        torch.zeros(3, 1),
        "Mary",
        span("a"),
        mask[:1],
    ):
        with pytest.raises(PositionError):
            frame.columns(wrong)
    with pytest.raises(PositionError, match="selects no position"):
        frame.columns(mask & False)


def test_a_mask_is_laid_out_as_the_prompts_were_given():
    from dataclasses import replace

    moved = replace(frame_of([(0, 5, 0), (1, 4, 0)]), given=torch.tensor([0, 0]))
    mask = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]).bool()  # the second: its last token, padded on the right
    assert moved.columns(mask).tolist() == [[0], [4]]


def test_spans_by_text():
    offsets = (((0, 4), (4, 9), (9, 13)), ((0, 2), (2, 4)))
    frame = Frame(0, 3, 3, torch.tensor([0, 1]), torch.tensor([3, 2]), ("Mary went Mary"[:13], "Mary"), offsets)
    assert frame.columns(span("Mary", "all")).tolist() == [[0, -1], [1, 2]]
    assert frame.columns(span("Mary", "first")).tolist() == [[0], [1]]
    with pytest.raises(PositionError, match="prompt 1 does not contain 'went'"):
        frame.columns(span("went"))
    with pytest.raises(PositionError, match="a span of 3 texts for 2 prompts"):
        frame.columns(span(["a", "b", "c"]))


def test_generation_reaches_as_far_as_it_may():
    from dataclasses import replace

    frame = replace(frame_of([(1, 3, 0), (0, 4, 0)]), reach=2)
    assert frame.columns(4).tolist() == [[5], [4]]
    with pytest.raises(PositionError, match="at most 2 generated"):
        frame.columns(5)
    step = replace(frame, start=4, length=1)
    assert step.local(step.columns(4))[0].tolist() == [1]
    assert step.local(step.everything, "prompt")[0].tolist() == []
    assert step.local(step.everything, "generated")[0].tolist() == [0, 1]
