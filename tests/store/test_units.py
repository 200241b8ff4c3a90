import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.store.units import Cut, Fingerprint, Unit, units

corpora = st.lists(st.integers(0, 25), min_size=1, max_size=30).filter(any)


def documents(lengths):
    """Every token of every document is a number of its own."""
    flat = iter(range(10_000))
    return [[next(flat) for _ in range(n)] for n in lengths]


def rows(found):
    return [
        (int(label.document[i]), int(label.position[i]), int(label.token[i]))
        for unit in found
        for label in [unit.labels()]
        for i in range(len(label))
    ]


@given(corpora, st.integers(1, 9), st.integers(1, 40))
def test_every_token_is_one_row_whatever_the_cut(lengths, context, unit_tokens):
    texts = documents(lengths)
    found = list(units(texts, Cut(context, unit_tokens)))
    assert rows(found) == [(d, p, token) for d, ids in enumerate(texts) for p, token in enumerate(ids)]
    assert all(unit.rows >= unit_tokens for unit in found[:-1]) and all(u.rows < unit_tokens + context for u in found)
    assert all(int(unit.lengths.max()) <= context for unit in found)
    assert [unit.number for unit in found] == list(range(len(found)))


@given(corpora, st.data())
def test_as_many_rows_as_were_asked_for(lengths, data):
    texts = documents(lengths)
    tokens = data.draw(st.integers(1, sum(lengths)))
    found = list(units(texts, Cut(6, 10), tokens))
    assert rows(found) == rows(units(texts, Cut(6, 10)))[:tokens]
    with pytest.raises(ValueError, match="asked for"):
        list(units(texts, Cut(6, 10), sum(lengths) + 1))


@given(corpora.filter(lambda lengths: max(lengths) > 3))
def test_the_first_positions_of_each_window_can_be_left_out(lengths):
    found = list(units(documents(lengths), Cut(5, 10, skip_first=2)))
    kept = [(d, p) for d, p, _ in rows(found)]
    assert kept == [(d, p) for d, n in enumerate(lengths) for p in range(n) if p % 5 >= 2]
    assert all(len(unit.labels()) == unit.rows for unit in found)


def test_a_unit_survives_a_file():
    (unit,) = units(documents([3, 9]), Cut(4, 100))
    back = Unit.from_tensors(unit.to_tensors())
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(vars(unit).values(), vars(back).values(), strict=True)
    )


def test_the_order_is_a_shuffle_with_training_rows_in_front():
    (unit,) = units(documents([20] * 50), Cut(20, 10_000, validation=0.3))
    order = unit.order(0)
    split = unit.labels().split[order]
    assert sorted(order.tolist()) == list(range(1000))
    assert split.tolist() == sorted(split.tolist()) and 0 < int(split.sum()) < 1000
    assert not order.equal(unit.order(1)) and order.equal(unit.order(0))
    assert int((order.diff().abs() == 1).sum()) < 20  # neighbours in the text are not neighbours in the shard


def test_a_document_is_on_one_side_by_its_content_and_the_share_is_kept():
    cut = Cut(validation=0.2)
    texts = [torch.tensor([i, i + 1], dtype=torch.int32) for i in range(2000)]
    sides = [cut.split(text) for text in texts]
    assert 0.17 < sum(sides) / len(sides) < 0.23
    assert sides == [cut.split(text.clone()) for text in texts]
    assert sides != [Cut(validation=0.2, seed=1).split(text) for text in texts]
    assert not any(Cut(validation=0).split(text) for text in texts)


def test_a_fingerprint_knows_where_documents_end():
    def of(documents):
        fingerprint = Fingerprint()
        assert list(fingerprint.of(documents)) == documents
        return fingerprint.described()

    assert of([[1, 2], [3]]) == of([[1, 2], [3]])
    prints = {
        of(d)["fingerprint"] for d in ([[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[1, 2], [4]], [[1, 2], [3], []])
    }
    assert len(prints) == 5


@pytest.mark.parametrize(
    "wrong", [{"context": 0}, {"unit_tokens": 0}, {"skip_first": 8}, {"skip_first": -1}, {"validation": 1.0}]
)
def test_a_cut_that_cannot_be_is_told(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Cut(**({"context": 8} | wrong))


def test_documents_that_give_no_rows_are_told():
    with pytest.raises(ValueError, match="no rows"):
        list(units([[1], [2]], Cut(4, 4, skip_first=2)))
