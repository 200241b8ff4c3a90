import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchclamp as pc
from patchclamp import store


@pytest.fixture(scope="module")
def acts(model, documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader") / "acts"
    sites = ["resid_mid.1", "mlp_out.1", "mlp_post.1"]
    return store.record(
        model, documents * 3, sites, folder, dtype="float32", unit_tokens=200, context=16, validation=0.2, quiet=True
    )


def of(acts, window):
    return store.open(acts.place.url, window=window)["resid_mid.1"]


def rows_of(rows, **options):
    return torch.cat(list(rows.batches(97, **options)))


def sorted_rows(x):
    return x[x[:, 0].argsort(stable=True)]


def stored(rows):
    return torch.cat([x for _, x in rows.labelled(1000)])


def test_an_epoch_is_every_row_once_and_the_order_follows_from_seed_and_epoch(acts):
    rows = of(acts, 4)
    assert isinstance(rows, store.Rows) and rows.d == 32 and rows.rows == acts.rows and len(acts.records) > 8
    first = rows_of(rows)
    assert sorted_rows(first).equal(sorted_rows(stored(rows)))
    assert first.equal(rows_of(of(acts, 4)))
    for other in ({"seed": 1}, {"epoch": 1}):
        assert not first.equal(rows_of(rows, **other))
        assert sorted_rows(first).equal(sorted_rows(rows_of(rows, **other)))


def test_rows_of_all_documents_are_mixed(acts):
    order = {
        tuple(x.tolist()): int(d)
        for labels, rows in acts["resid_mid.1"].labelled(999)
        for d, x in zip(labels.document, rows, strict=True)
    }
    batch = next(of(acts, 8).batches(200))
    found = torch.tensor([order[tuple(x.tolist())] for x in batch])
    assert len((found % 60).unique()) > 40  # of 60 documents, three times each; in the order of the text there were ten
    assert float(torch.corrcoef(torch.stack([found[1:].float(), found[:-1].float()]))[0, 1]) < 0.3


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_reading_goes_on_from_any_row_with_batches_of_any_size(acts, data):
    window = data.draw(st.integers(1, 20))
    part = data.draw(st.sampled_from([None, "train", "validation"]))
    rows = of(acts, window) if part is None else of(acts, window).split(part)
    seed, epoch = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    whole = rows_of(rows, seed=seed, epoch=epoch)
    start, size = data.draw(st.integers(0, rows.rows)), data.draw(st.integers(20, 400))
    batches = list(rows.batches(size, seed=seed, epoch=epoch, start=start))
    assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)
    assert (torch.cat(batches) if batches else whole[:0]).equal(whole[start:])


def test_sites_come_in_step(acts, model):
    pairs = acts["resid_mid.1", "mlp_out.1", "mlp_post.1"]
    assert isinstance(pairs, store.PairedRows) and pairs.d == (32, 32, 56) and pairs.rows == acts.rows
    batches = list(pairs.batches(150, seed=2))
    joined = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    assert joined[0].equal(rows_of(acts["resid_mid.1"], seed=2))
    with torch.no_grad():  # the MLP's neurons, put through its own down-projection, are its output
        assert torch.allclose(model.hf.model.layers[1].mlp.down_proj(joined[2]), joined[1], atol=1e-5)
    assert [s.count for s in pairs.split("train").statistics()] == [acts["mlp_out.1"].split("train").rows] * 3


def test_splits_share_no_document_and_make_the_whole(acts):
    train, held_out = acts["resid_mid.1"].split("train"), acts["resid_mid.1"].split("validation")
    assert train.rows + held_out.rows == acts.rows and 0.05 < held_out.rows / acts.rows < 0.4
    texts = [
        {tuple(acts.document(int(d)).tolist()) for labels, _ in part.labelled(500) for d in labels.document.unique()}
        for part in (train, held_out)
    ]
    assert not texts[0] & texts[1]  # the corpus has every document three times
    assert sorted_rows(torch.cat([rows_of(train), rows_of(held_out)])).equal(sorted_rows(stored(acts["resid_mid.1"])))
    assert all((labels.split == 1).all() for labels, _ in held_out.labelled(500))
    with pytest.raises(ValueError, match="'train' or 'validation'"):
        train.split("test")


def test_a_split_that_is_empty_is_told(model, documents, tmp_path):
    made = store.record(model, documents, "resid_post.0", tmp_path / "acts", validation=0.0, quiet=True)
    with pytest.raises(store.StoreError, match=r"recorded with validation=0\.0"):
        made["resid_post.0"].split("validation")


@pytest.mark.parametrize("part", [None, "train", "validation"])
def test_statistics_are_those_of_the_rows(acts, part):
    rows = acts["mlp_out.1"] if part is None else acts["mlp_out.1"].split(part)
    x = stored(rows).double()
    found = rows.statistics(covariance=True)
    assert found.count == len(x) == rows.rows
    assert torch.allclose(found.mean, x.mean(0)) and torch.allclose(found.variance, x.var(0, correction=0))
    assert torch.allclose(found.covariance, x.T.cov(correction=0), rtol=1e-4, atol=1e-6)
    assert found.norm_quantile(0.5) == pytest.approx(float(x.norm(dim=1).median()), rel=0.02)
    assert rows.statistics().covariance is None


def test_two_models_over_one_corpus_are_paired_and_others_are_not(acts, model, documents, tmp_path):
    import tiny

    other = pc.wrap(tiny.build("llama", seed=1, hidden_size=24))

    def recorded(name, texts=documents * 3, **options):
        cut = {"unit_tokens": 200, "context": 16, "validation": 0.2} | options
        return store.record(other, texts, "resid_mid.1", tmp_path / name, quiet=True, **cut)["resid_mid.1"]

    pairs = store.paired(acts["resid_mid.1"], recorded("other"))
    assert pairs.d == (32, 24)
    a, b = next(pairs.batches(50))
    where = {
        tuple(x.tolist()): (int(d), int(p))
        for labels, rows in acts["resid_mid.1"].labelled(999)
        for d, p, x in zip(labels.document, labels.position, rows, strict=True)
    }
    for x, y in zip(a, b, strict=True):
        d, p = where[tuple(x.tolist())]
        ids = (documents * 3)[d][p // 16 * 16 : p + 1]
        assert torch.allclose(other.run([ids], record="resid_mid.1")["resid_mid.1"][0, -1], y, rtol=0.02, atol=0.05)
    for name, options, says in [
        ("seed", {"seed": 1}, "cut"),
        ("unit", {"unit_tokens": 100}, "cut"),
        ("text", {"texts": documents * 3 + [[7] * 9]}, "corpus, rows"),
    ]:
        with pytest.raises(store.Mismatch, match=f"they differ in .*{says}"):
            store.paired(acts["resid_mid.1"], recorded(name, **options))
    with pytest.raises(store.Mismatch, match="not of one split"):
        store.paired(acts["resid_mid.1"], acts["mlp_out.1"].split("train"))


def test_rows_come_in_the_dtype_that_was_asked_for(acts):
    half = store.open(acts.place.url, dtype=torch.bfloat16)["resid_mid.1"]
    assert next(half.batches(5)).equal(next(acts["resid_mid.1"].batches(5)).bfloat16())


def test_a_document_is_read_back_whole(acts, documents):
    assert all(acts.document(d).tolist() == ids for d, ids in enumerate(documents))
    with pytest.raises(KeyError, match="no row of document 999"):
        acts.document(999)


def test_what_is_not_there_is_told(acts, tmp_path):
    with pytest.raises(KeyError, match=r"did you mean 'mlp_out\.1'"):
        acts["mlp_out.2"]
    assert acts["blocks.1.hook_mlp_out"].site == "mlp_out.1" and "mlp_out.1" in acts
    with pytest.raises(store.StoreError, match="there is no store at"):
        store.open(tmp_path)
    with pytest.raises(ValueError, match="at least one shard"):
        store.open(acts.place.url, window=0)
    with pytest.raises(ValueError, match="counted in rows"):
        acts["mlp_out.1"].batches(5, start=10**6)
    assert "mlp_out.1 [32]" in repr(acts) and "mlp_out.1 train" in repr(acts["mlp_out.1"].split("train"))
