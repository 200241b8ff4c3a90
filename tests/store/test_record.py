import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import patchclamp as pc
from patchclamp import store
from patchclamp.store.places import Place

SITES = ["resid_post.1", "z.0", "mlp_post.2", "z.1.3", "ln1_scale.2"]


def tree(folder):
    """Every file of a folder with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def record(model, documents, out, **options):
    defaults = {"sites": SITES, "dtype": "float32", "unit_tokens": 150, "context": 16, "quiet": True}
    return store.record(model, documents, out=out, **(defaults | options))


def by_label(rows):
    """(document, position) → (token, row), over the whole store."""
    found = {}
    for labels, x in rows.labelled(64):
        for i in range(len(labels)):
            key = int(labels.document[i]), int(labels.position[i])
            assert key not in found
            found[key] = int(labels.token[i]), x[i]
    return found


@pytest.fixture(scope="module")
def whole(model, documents, tmp_path_factory):
    """A store of all documents, and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "acts"
    return record(model, documents, folder), folder


# ── what is in it ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_token_has_one_row_at_every_site_and_it_is_what_run_records(model, documents, tmp_path):
    made = record(model, documents[:20], tmp_path / "acts", batch_tokens=1)  # a window at a time, as below
    expected = {}
    for d, ids in enumerate(documents[:20]):
        for offset in range(0, len(ids), 16):
            run = model.run([ids[offset : offset + 16]], record=SITES)
            for p in range(len(ids[offset : offset + 16])):
                expected[d, offset + p] = [run[site][0, p].flatten() for site in SITES]
    for k, site in enumerate(SITES):
        found = by_label(made[site])
        assert found.keys() == expected.keys()
        for (d, p), (token, row) in found.items():
            assert token == documents[d][p]
            assert torch.equal(row, expected[d, p][k])  # bit for bit
    assert made["z.0"].d == 32 and made["z.1.3"].d == 8 and made["ln1_scale.2"].d == 1
    assert made.manifest["sites"]["z.0"] == {"shape": [4, 8], "d": 32, "dtype": "float32"}


def test_neither_batches_nor_units_change_what_a_row_holds(model, documents, whole, tmp_path):
    wide = record(model, documents, tmp_path / "wide", sites="resid_post.1", batch_tokens=4000, unit_tokens=5000)
    small, large = by_label(whole[0]["resid_post.1"]), by_label(wide["resid_post.1"])
    assert small.keys() == large.keys() and len(whole[0].records) > 5 and len(wide.records) == 1
    assert all(small[k][0] == large[k][0] and torch.allclose(small[k][1], large[k][1], atol=1e-5) for k in small)


def test_the_manifest_says_what_it_is_of(model, documents, whole):
    made, folder = whole
    assert made.rows == sum(map(len, documents)) == sum(record["rows"] for record in made.records)
    assert made.manifest["model"]["class"] == "LlamaForCausalLM" and len(made.manifest["model"]["weights"]) == 64
    assert made.manifest["corpus"]["documents"] == len(documents)
    assert (
        made.manifest["schema"] == 1 and made.manifest["cut"]["seed"] == 0 and "shuffled" in made.manifest["row_order"]
    )
    top = {path.split("/")[0] for path in tree(folder)}
    assert top == {"manifest.json", "plan.json", "documents", "units", "rows", "stats", *SITES}
    made.verify()


def test_as_many_tokens_as_were_asked_for(model, documents, tmp_path):
    made = record(model, documents, tmp_path / "acts", tokens=333, sites="resid_post.0")
    assert made.rows == 333 and len(by_label(made["resid_post.0"])) == 333
    with pytest.raises(ValueError, match=r"and tokens=99,999 were asked for"):
        record(model, documents, tmp_path / "more", tokens=99_999)


def test_positions_can_be_left_out(model, documents, whole, tmp_path):
    made = record(model, documents, tmp_path / "acts", sites="resid_post.1", skip_first=3)
    found, every = by_label(made["resid_post.1"]), by_label(whole[0]["resid_post.1"])
    assert found.keys() == {key for key in every if key[1] % 16 >= 3}
    assert all(torch.allclose(found[key][1], every[key][1], atol=1e-5) for key in found)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-5), ("int8", 2e-4)])
def test_what_a_dtype_loses_is_in_the_manifest(model, documents, whole, tmp_path, dtype, bound):
    made = record(model, documents, tmp_path / "acts", dtype=dtype, sites=["resid_post.1", "mlp_post.2"])
    for site in made.sites:
        exact, kept = by_label(whole[0][site]), by_label(made[site])
        a, b = (torch.stack([rows[key][1] for key in sorted(rows)]) for rows in (exact, kept))
        lost = float((a - b).square().sum() / (a - a.mean(0)).square().sum())
        assert 0 < lost < bound
        assert made[site].fraction_of_variance_unexplained == pytest.approx(lost, rel=0.01)
    assert whole[0]["resid_post.1"].fraction_of_variance_unexplained == 0


def test_texts_are_read_as_run_reads_them(tmp_path):
    model = pc.load("organism:tales")
    truth = pc.organisms.truth("tales")
    made = record(model, truth, tmp_path / "acts", sites="resid_post.-1", tokens=600, batch_tokens=1, context=None)
    text = truth.documents(256, 0)[5].text
    run = model.run(text, record="resid_post.3")
    assert made.document(5).equal(run.tokens.ids[0])
    rows = by_label(made["resid_post.3"])
    assert torch.equal(torch.stack([rows[5, p][1] for p in range(run.tokens.ids.shape[1])]), run["resid_post.3"][0])
    with pytest.raises(ValueError, match="without end: say tokens="):
        record(model, truth, tmp_path / "endless")


class Bag(nn.Module):
    """A network of token ids that takes no mask."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(99, 6)
        self.embed.weight.data = torch.randn(99, 6, generator=torch.Generator().manual_seed(0))
        self.out = nn.Linear(6, 6)

    def forward(self, input_ids):
        return self.out(self.embed(input_ids).cumsum(1))


def test_any_module_that_reads_tokens_can_be_recorded(documents, tmp_path):
    model = pc.wrap(Bag())
    made = record(model, documents, tmp_path / "acts", sites="module:out", context=64)
    rows = by_label(made["module:out"])
    with torch.no_grad():
        for d in (0, 7):
            exact = model.hf(torch.tensor([documents[d]]))[0]
            assert torch.allclose(torch.stack([rows[d, p][1] for p in range(len(documents[d]))]), exact, atol=1e-5)


# ── again, and going on ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_complete_store_is_given_back_untouched(model, documents, whole):
    made, folder = whole
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = record(model, documents, folder)
    assert again.manifest == made.manifest
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_units_that_are_missing_are_made_again_with_the_same_bytes(model, documents, whole, tmp_path):
    folder = tmp_path / "acts"
    record(model, documents, folder)
    bytes_ = tree(folder)
    assert bytes_ == tree(whole[1])
    for name in ("manifest.json", "units/00003.json", "units/00000.json", "z.0/00003.safetensors"):
        (folder / name).unlink()
    with pytest.raises(store.Unfinished, match=rf"has {len(whole[0].records) - 2} of {len(whole[0].records)} units"):
        store.open(folder)
    record(model, documents, folder)
    assert tree(folder) == bytes_


def killed(forked, model, documents, folder, after):
    """Record in a process of its own, and kill it (-9) after some seconds; whether it was still at work."""
    process = forked(record, model, documents, folder)
    process.join(after)
    working = process.is_alive()
    if working:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return working


def kill_and_resume(times, forked, model, documents, whole, tmp_path):
    began = time.monotonic()
    forked(record, model, documents, tmp_path / "timed").join()
    seconds = time.monotonic() - began
    moments = random.Random(0)
    interrupted = 0
    for turn in range(times):
        folder = tmp_path / str(turn)
        interrupted += killed(forked, model, documents, folder, seconds * moments.random())
        interrupted += killed(forked, model, documents, folder, seconds * moments.random() / 2)  # and while it goes on
        record(model, documents, folder)
        assert tree(folder) == tree(whole[1])
    assert interrupted >= times // 3  # a moment may come after the end, on a machine that has become faster


def test_killed_at_a_random_moment_and_resumed_it_has_the_same_bytes(forked, model, documents, whole, tmp_path):
    kill_and_resume(3, forked, model, documents, whole, tmp_path)


@pytest.mark.slow
def test_killed_twenty_times_it_has_the_same_bytes(forked, model, documents, whole, tmp_path):
    kill_and_resume(20, forked, model, documents, whole, tmp_path)


def die_after(count, model, documents, folder):
    """Record, and die by kill -9 in the middle of writing the `count`-th file."""
    write = Place._write
    left = [count]

    def half(parts):
        for part in parts:
            yield bytes(part)[: len(part) // 2]
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(self, target, name, parts):
        left[0] -= 1
        return write(self, target, name, parts if left[0] else half(parts))

    Place._write = dying  # in this process, which is about to die
    record(model, documents, folder)


@pytest.mark.parametrize("count", [1, 9, 12, 13, 21, 28])
def test_killed_within_a_file_it_has_the_same_bytes(forked, model, documents, whole, tmp_path, count):
    process = forked(die_after, count, model, documents, tmp_path / "acts")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(name.endswith(".part") for name in tree(tmp_path / "acts"))
    record(model, documents, tmp_path / "acts")
    assert tree(tmp_path / "acts") == tree(whole[1])


def test_a_full_disk_is_told_and_what_was_done_is_kept(forked, model, documents, whole, tmp_path):
    folder = tmp_path / "acts"

    def with_little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # moments are larger than that
        try:
            record(model, documents, folder)
        except store.StoreError as full:
            (tmp_path / "said").write_text(str(full)[:30_000])

    forked(with_little_room).join()
    assert "no room for units/00000.safetensors" in (tmp_path / "said").read_text()
    assert "the same call goes on" in (tmp_path / "said").read_text()
    left = tree(folder)
    assert "rows/00000.safetensors" in left and not any(name.endswith(".part") for name in left)
    record(model, documents, folder)
    assert tree(folder) == tree(whole[1])


def test_a_recording_that_cannot_fit_is_refused_before_it_starts(model, documents, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000})())
    with pytest.raises(store.StoreError, match=r"has 1 kB of room, and .* are needed"):
        record(model, documents, tmp_path / "acts")


# ── what must not be mixed ────────────────────────────────────────────────────────────────────────────────────────


def other_weights(model):
    import copy

    hf = copy.deepcopy(model.hf)
    hf.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    return pc.wrap(hf)


CHANGES = {
    "weights": (lambda m, d: (other_weights(m), d), {}, "model weights: the store has"),
    "corpus": (lambda m, d: (m, [*d[:-1], [5]]), {}, "corpus fingerprint: the store has"),
    "documents": (lambda m, d: (m, d[:-1]), {}, "corpus documents: the store has 60, and 59 was asked for"),
    "sites": (lambda m, d: (m, d), {"sites": ["resid_post.1"]}, "sites z.0: the store has"),
    "more sites": (lambda m, d: (m, d), {"sites": [*SITES, "z.2"]}, "sites z.2: the store has nothing"),
    "dtype": (lambda m, d: (m, d), {"dtype": "int8"}, 'dtype: the store has "float32", and "int8" was asked for'),
    "seed": (lambda m, d: (m, d), {"seed": 1}, "cut seed: the store has 0, and 1 was asked for"),
    "unit": (lambda m, d: (m, d), {"unit_tokens": 151}, "cut unit_tokens: the store has 150, and 151"),
    "context": (lambda m, d: (m, d), {"context": 17}, "cut context"),
    "split": (lambda m, d: (m, d), {"validation": 0.5}, "cut validation"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_store_of_something_else_is_refused_and_left_alone(model, documents, whole, what):
    change, options, says = CHANGES[what]
    before = tree(whole[1])
    other, texts = change(model, documents)
    with pytest.raises(store.Mismatch, match="nothing in it was changed") as refused:
        record(other, texts, whole[1], **options)
    assert says in str(refused.value)
    assert tree(whole[1]) == before


def test_another_tokenizer_is_refused(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    def tokenizer(*words):
        backend = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", *words])}, unk_token="?"))
        backend.pre_tokenizer = Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", pad_token="?")

    module = Bag()
    texts = ["a b a", "b b c a"]
    record(pc.wrap(module, tokenizer("a", "b", "c")), texts, tmp_path / "acts", sites="module:out", context=8)
    used = tokenizer("a", "b", "c")
    used(texts, padding=True, truncation=True, max_length=2)  # how it was called last is no difference
    record(pc.wrap(module, used), texts, tmp_path / "acts", sites="module:out", context=8)
    with pytest.raises(store.Mismatch, match="tokenizer: the store has"):
        record(pc.wrap(module, tokenizer("a", "c", "b")), texts, tmp_path / "acts", sites="module:out", context=8)
    with pytest.raises(store.Mismatch, match="nothing was asked for"):
        record(pc.wrap(module), [[1, 2]], tmp_path / "acts", sites="module:out", context=8)


def test_the_same_model_under_another_name_is_the_same_model(model, documents, whole):
    assert record(pc.wrap(model.hf, name="a copy"), documents, whole[1]).rows == whole[0].rows


def test_a_folder_of_something_else_is_refused(model, documents, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(store.StoreError, match=r"files of something else \(thesis\.tex\)"):
        record(model, documents, tmp_path)
    assert set(tree(tmp_path)) == {"thesis.tex"}


def test_a_damaged_shard_is_told_and_can_be_made_again(model, documents, tmp_path):
    folder = tmp_path / "acts"
    record(model, documents, folder)
    before = tree(folder)
    shard = folder / "z.0/00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    for act in (lambda: store.open(folder), lambda: record(model, documents, folder)):
        with pytest.raises(store.Damaged, match=r"z\.0/00002\.safetensors has [\d,]+ bytes, and [\d,]+ were written"):
            act()
    (folder / "units/00002.json").unlink()
    (folder / "manifest.json").unlink()
    record(model, documents, folder)
    assert tree(folder) == before
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(store.Damaged, match=r"z\.0/00002\.safetensors has sha256"):
        store.open(folder).verify()
    shard.unlink()
    with pytest.raises(store.Damaged, match="is missing"):
        store.open(folder)


def test_a_store_of_another_schema_is_told(model, documents, tmp_path):
    folder = tmp_path / "acts"
    record(model, documents, folder)
    for name in ("manifest.json", "plan.json"):
        (folder / name).write_text((folder / name).read_text().replace('"schema": 1', '"schema": 2'))
    for act in (lambda: store.open(folder), lambda: record(model, documents, folder)):
        with pytest.raises(store.StoreError, match="schema 2, and this version reads schema 1"):
            act()


# ── what it says, and what it leaves alone ──────────────────────────────────────────────────────────────────────────


def test_the_bill_comes_first(model, documents, tmp_path, capsys):
    folder = tmp_path / "acts"
    record(model, documents, folder, quiet=False)
    said = capsys.readouterr().err
    rows = sum(map(len, documents))
    assert f"{rows:,} rows of 60 documents in" in said and "on disk (resid_post.1" in said and "of memory" in said
    exact = sum(len(data) for name, data in tree(folder).items() if name.split("/")[0] in (*SITES, "rows"))
    bill = (32 + 32 + 56 + 8 + 1) * 4 * rows + 17 * rows
    assert bill == pytest.approx(exact, rel=0.1)
    assert f"{bill / 1000:.3g} kB on disk" in said
    record(model, documents, folder, quiet=False)
    assert capsys.readouterr().err == ""  # nothing is left to pay for


def test_no_randomness_is_taken_from_the_global_generator(model, documents, tmp_path):
    before = torch.get_rng_state()
    made = record(model, documents, tmp_path / "acts", sites="resid_post.0")
    list(made["resid_post.0"].batches(100))
    assert torch.get_rng_state().equal(before)


def test_paths_can_be_relative(model, documents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(model, documents, "acts", sites="resid_post.0")
    assert Path("acts/manifest.json").exists()
