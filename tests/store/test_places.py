import errno
import hashlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from patchclamp import store
from patchclamp.store.places import Place

# ── a folder ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    place = Place.at(tmp_path / "acts")
    written = place.write("a/b.bin", [b"one", memoryview(b"two")])
    assert written == {"bytes": 6, "sha256": hashlib.sha256(b"onetwo").hexdigest()}
    assert place.read("a/b.bin") == b"onetwo" and place.sizes() == {"a/b.bin": 6} == place.sizes("a")
    assert place.read("a/c.bin") is None and place.sizes("c") == {}

    def failing():
        yield b"half"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        place.write("a/b.bin", failing())
    assert place.read("a/b.bin") == b"onetwo" and place.sizes() == {"a/b.bin": 6}


def test_a_full_disk_is_told_and_other_errors_stay_what_they_are(tmp_path):
    place = Place.at(tmp_path)

    def failing(code):
        yield b"half"
        raise OSError(code, os.strerror(code))

    with pytest.raises(store.StoreError, match=r"no room for x .*after 4 bytes"):
        place.write("x", failing(errno.ENOSPC))
    with pytest.raises(PermissionError):
        place.write("x", failing(errno.EACCES))
    assert place.sizes() == {}


def test_what_interrupted_writers_left_is_tidied_away(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z/0.safetensors.123.part").write_text("half")
    (tmp_path / "z/0.safetensors").write_text("whole")
    Place.at(tmp_path).tidy()
    assert Place.at(tmp_path).sizes() == {"z/0.safetensors": 5}


def test_broken_json_is_told(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(store.Damaged, match=r"x\.json is not JSON"):
        Place.at(tmp_path).read_json("x.json")


def test_paths_and_urls(tmp_path):
    assert Place.at(f"file://{tmp_path}").folder == tmp_path == Place.at(tmp_path).folder
    assert Place.at("memory://acts/").url == "memory://acts" and Place.at("memory://acts").folder is None
    with pytest.raises(ValueError, match="is a local folder"):
        Place.at(tmp_path, {"key": "x"})


# ── a cache ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def far(tmp_path):
    place = Place.at("memory://far")
    yield place.cached(tmp_path / "cache", 10)
    import fsspec

    fsspec.filesystem("memory").rm("/far", recursive=True)


def test_what_is_read_from_afar_is_kept_by_its_checksum(far):
    old, new = far.write("x", [b"12345"]), far.write("x", [b"67890"])
    path = far.file("x", new["sha256"])
    assert path.read_bytes() == b"67890" and path.parent.name == "cache"
    far.write("x", [b"other"])
    assert far.file("x", new["sha256"]).read_bytes() == b"67890"  # not asked for again
    with pytest.raises(store.Damaged, match="x has sha256"):
        far.file("x", old["sha256"])
    with pytest.raises(store.Damaged, match="y is missing"):
        far.file("y", old["sha256"])
    assert len(list(path.parent.iterdir())) == 1


def test_the_cache_forgets_what_was_used_longest_ago(far):
    written = {name: far.write(name, [name.encode() * 4])["sha256"] for name in "abc"}
    paths = {}
    for age, name in enumerate("abab"):
        paths[name] = far.file(name, written[name])
        os.utime(paths[name], (age, age))
    far.file("a", written["a"])  # used again: now
    far.file("c", written["c"])  # twelve bytes, and ten are kept
    assert paths["a"].exists() and not paths["b"].exists()


def test_a_store_in_another_file_system_equals_a_local_one(model, documents, tmp_path, far):
    stores = [
        store.record(model, documents, "resid_post.1", out, unit_tokens=200, quiet=True)
        for out in (tmp_path / "acts", far.url + "/acts")
    ]
    assert stores[0].manifest == stores[1].manifest


# ── an object store, by its own protocol ──────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bucket():
    """moto's S3 server in a process of its own: a URL of a bucket, and what fsspec needs to reach it."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        options = {"key": "test", "secret": "test", "endpoint_url": endpoint}
        import s3fs

        s3fs.S3FileSystem(**options).mkdir("lab")
        yield "s3://lab/acts", options
    finally:
        server.kill()
        server.wait()


def test_a_store_in_a_bucket(model, documents, bucket, tmp_path):
    url, options = bucket
    sites = ["resid_post.1", "mlp_out.1"]
    cut = {"unit_tokens": 200, "context": 16, "quiet": True}
    here = store.record(model, documents, sites, tmp_path / "acts", **cut)
    there = store.record(model, documents, sites, url, options=options, **cut)
    assert there.manifest == here.manifest

    system = __import__("s3fs").S3FileSystem(**options)
    objects = {path.removeprefix("lab/acts/"): system.cat_file(path) for path in system.find("lab/acts")}
    assert objects == {
        p.relative_to(tmp_path / "acts").as_posix(): p.read_bytes()
        for p in (tmp_path / "acts").rglob("*")
        if p.is_file()
    }

    system.rm("lab/acts/units/00002.json")  # as an interruption leaves it
    system.rm("lab/acts/manifest.json")
    with pytest.raises(store.Unfinished, match="the same call of record"):
        store.open(url, options=options)
    assert store.record(model, documents, sites, url, options=options, **cut).manifest == here.manifest
    with pytest.raises(store.Mismatch, match="dtype"):
        store.record(model, documents, sites, url, options=options, dtype="int8", **cut)

    cache = tmp_path / "cache"
    far = store.open(url, options=options, cache=cache, window=2)
    near = store.open(tmp_path / "acts", window=2)
    batches = [torch.cat(list(made["resid_post.1"].batches(64, seed=1, start=100))) for made in (far, near)]
    assert batches[0].equal(batches[1])
    assert len(list(cache.iterdir())) == len(near.records)  # whole shards, of this site alone
    far.verify()

    size = far.records[0]["files"]["mlp_out.1/00000.safetensors"]["bytes"]
    system.pipe_file("lab/acts/mlp_out.1/00000.safetensors", b"x" * size)
    damaged = store.open(url, options=options, cache=tmp_path / "empty")
    with pytest.raises(store.Damaged, match=r"mlp_out\.1/00000\.safetensors has sha256"):
        list(damaged["mlp_out.1"].batches(64))
