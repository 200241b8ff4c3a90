import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patchclamp as pc
from patchclamp import store


@pytest.fixture(scope="module")
def rows(model, documents):
    return store.stream(model, documents, "resid_post.1", buffer=300, context=16)


def rows_of(rows, **options):
    return torch.cat(list(rows.batches(64, **options)))


def sorted_rows(x):
    return x[x[:, 0].argsort(stable=True)]


def test_it_gives_what_a_store_gives_in_another_order(model, documents, rows, tmp_path):
    made = store.record(
        model, documents, "resid_post.1", tmp_path / "acts", dtype="float32", context=16, unit_tokens=37, quiet=True
    )
    assert isinstance(rows, store.Rows) and (rows.d, rows.rows) == (32, made.rows)
    found, kept = sorted_rows(rows_of(rows)), sorted_rows(rows_of(made["resid_post.1"]))
    assert found.shape == kept.shape and torch.allclose(found, kept, atol=1e-5)


def test_the_order_follows_from_seed_and_epoch(rows):
    whole = rows_of(rows)
    assert whole.equal(rows_of(rows))
    assert not whole.equal(rows_of(rows, seed=1)) and not whole.equal(rows_of(rows, epoch=1))
    assert torch.allclose(sorted_rows(whole), sorted_rows(rows_of(rows, epoch=1)), atol=1e-5)


@settings(max_examples=8)
@given(st.data())
def test_it_goes_on_from_any_row_with_batches_of_any_size(rows, data):
    epoch = data.draw(st.integers(0, 2))
    whole = rows_of(rows, epoch=epoch)
    start, size = data.draw(st.integers(0, rows.rows)), data.draw(st.integers(10, 200))
    batches = list(rows.batches(size, epoch=epoch, start=start))
    assert all(len(b) == size for b in batches[:-1])
    assert (torch.cat(batches) if batches else whole[:0]).equal(whole[start:])


def test_going_on_runs_the_model_on_what_is_still_to_come_alone(model, documents):
    rows = store.stream(model, documents * 4, "resid_post.1", buffer=300, context=16)
    seen = [0]
    handle = model.hf.model.layers[0].register_forward_hook(
        lambda mod, args, out: seen.__setitem__(0, seen[0] + args[0].shape[:2].numel())
    )
    try:
        list(rows.batches(50, start=rows.rows - 100))
        late, seen[0] = seen[0], 0
        list(rows.batches(50))
    finally:
        handle.remove()
    assert seen[0] >= rows.rows > 3000 and late < 2000


def test_several_sites_come_in_step(model, documents):
    pairs = store.stream(model, documents, ["mlp_post.1", "mlp_out.1"], buffer=200)
    assert isinstance(pairs, store.PairedRows) and pairs.d == (56, 32)
    with torch.no_grad():
        for neurons, out in pairs.batches(100, seed=3):
            assert torch.allclose(model.hf.model.layers[1].mlp.down_proj(neurons), out, atol=1e-5)
    assert [s.mean.shape[0] for s in pairs.statistics()] == [56, 32]


class Writer:
    def documents(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(3, 99, (9,), generator=generator).tolist() for _ in range(n)]


def test_a_corpus_without_end_has_rows_without_end(model):
    rows = store.stream(model, Writer(), "resid_post.0", buffer=400)
    assert rows.rows is None
    batches = rows.batches(128, seed=5)
    first = torch.cat([next(batches) for _ in range(30)])
    again = rows.batches(100, seed=5, start=1000)
    assert torch.cat([next(again) for _ in range(5)]).equal(first[1000:1500])
    with pytest.raises(ValueError, match="without end"):
        rows.batches(10, epoch=1)
    some = store.stream(model, Writer(), "resid_post.0", tokens=1000, buffer=400)
    assert some.rows == 1000 and len(rows_of(some)) == 1000


def test_neighbours_in_the_text_leave_apart(model, documents):
    """The position in the document is read off a model that says it: rows that follow each other do not count up."""

    class Clock(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Identity()

        def forward(self, input_ids):
            return self.out(torch.arange(input_ids.shape[1]).float()[None, :, None].expand(len(input_ids), -1, 2))

    rows = store.stream(pc.wrap(Clock()), [[1] * 40] * 30, "module:out", buffer=400)
    x = rows_of(rows)[:, 0]
    assert x.sort().values.equal(torch.arange(40.0).repeat_interleave(30))
    assert float((x.diff() == 1).float().mean()) < 0.1


def test_statistics_are_of_as_many_rows_as_the_buffer_holds(rows):
    found = rows.statistics(covariance=True)
    x = torch.cat(list(rows.batches(4096)))[: found.count].double()
    assert 300 <= found.count <= rows.rows
    assert torch.allclose(found.mean, x.mean(0)) and torch.allclose(found.covariance, x.T.cov(correction=0))


def test_what_cannot_be_mixed_is_told(model, documents):
    with pytest.raises(ValueError, match="at least two rows"):
        store.stream(model, documents, "resid_post.0", buffer=1)
