"""Ray with two workers, each run in a process of its own with a limit of time, as a hung cluster has none."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from patchclamp import store

ray = pytest.importorskip("ray")
TESTS = Path(__file__).parent.parent
CUT = {"unit_tokens": 100, "context": 16, "quiet": True}


def tree(folder):
    """Every file of a folder with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(body, folder, documents, timeout=900):
    """Run a script that knows the documents and `OUT`; its output."""
    head = f"""
        import os, signal, sys, threading, time
        from pathlib import Path
        import tiny, torch
        import patchclamp as pc
        from patchclamp import store
        from patchclamp.store.ray_engine import Ray
        torch.set_num_threads(1)
        DOCUMENTS, CUT, OUT = {documents!r}, {CUT!r}, Path({str(folder)!r}) / "acts"
    """
    path = folder / "script.py"
    path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    # By default Ray's workers run at niceness 15: beside anything else they would hardly run at all.
    environment = os.environ | {
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    process = subprocess.Popen(
        [sys.executable, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the cluster that it has started
            process.wait()
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(model, documents, tmp_path):
    store.record(model, documents, "resid_post.1", tmp_path / "alone", **CUT)
    run(
        """
        model = pc.wrap(tiny.build("llama"), name="tiny")
        store.record(model, DOCUMENTS, "resid_post.1", OUT, engine="ray", workers=2, **CUT)
        """,
        tmp_path,
        documents,
    )
    assert tree(tmp_path / "acts") == tree(tmp_path / "alone")


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(model, documents, tmp_path):
    """Each worker notes its process id when it loads the model; one is killed (-9) once units have been written."""
    store.record(model, documents, "resid_post.1", tmp_path / "alone", **CUT)
    said = run(
        """
        PIDS = OUT.parent / "pids"
        PIDS.mkdir()
        DRIVER = os.getpid()

        def load():
            (PIDS / str(os.getpid())).touch()
            model = pc.wrap(tiny.build("llama"), name="tiny")
            if os.getpid() != DRIVER:  # slowly, so that the kill comes in the middle
                model.hf.register_forward_pre_hook(lambda mod, args: time.sleep(0.1))
            return model

        killed = []
        def kill():
            while len(list(OUT.glob("units/*.json"))) < 2:
                time.sleep(0.01)
            killed.append(next(int(p.name) for p in PIDS.iterdir() if int(p.name) != DRIVER))
            os.kill(killed[0], signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        store.record(load, DOCUMENTS, "resid_post.1", OUT, engine=Ray(workers=2), **CUT)
        workers = {int(p.name) for p in PIDS.iterdir()} - {DRIVER}
        assert len(killed) == 1 and len(workers) == 3, (killed, workers)  # two, and one in place of the killed one
        print("UNITS", len(list(OUT.glob("units/*.json"))))
        """,
        tmp_path,
        documents,
    )
    assert int(said.split("UNITS")[1]) > 8
    assert tree(tmp_path / "acts") == tree(tmp_path / "alone")


@pytest.mark.slow
def test_what_a_worker_finds_wrong_is_told_and_a_unit_that_kills_is_given_up(documents, tmp_path):
    said = run(
        """
        import ray
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        DRIVER = os.getpid()

        def attempt(load, **options):
            try:
                store.record(load, DOCUMENTS, "resid_post.1", OUT, engine=Ray(**options), **CUT)
            except Exception as error:
                print("FOUND", type(error).__name__, error)

        attempt(lambda: pc.wrap(tiny.build("llama", seed=int(os.getpid() != DRIVER)), name="tiny"), workers=1)

        def deadly():
            model = pc.wrap(tiny.build("llama"), name="tiny")
            if os.getpid() != DRIVER:
                model.hf.register_forward_pre_hook(lambda mod, args: os._exit(1))
            return model

        attempt(deadly, workers=1, attempts=2)
        attempt(lambda: pc.wrap(tiny.build("llama"), name="tiny"), workers=9)
        """,
        tmp_path,
        documents,
    )
    found = [line for line in said.splitlines() if line.startswith("FOUND")]
    assert "this process has loaded tiny with weights" in said
    assert any("StoreError unit 0 killed 2 workers, one after another" in line for line in found)
    assert any("StoreError 9 workers need 9 CPU, and this Ray has 2" in line for line in found)


def test_what_no_pool_can_be_is_told():
    from patchclamp.store.ray_engine import Ray

    for wrong in ({"workers": 0}, {"attempts": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Ray(**wrong)
