import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from patchclamp import store
from patchclamp.store.engines import Local, Torchrun, engine_called

TESTS = Path(__file__).parent.parent
SITES = ["resid_post.1", "z.0"]
CUT = {"unit_tokens": 100, "context": 16, "quiet": True}


def tree(folder):
    """Every file of a folder with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def alone(model, documents, tmp_path_factory):
    """What one process writes."""
    folder = tmp_path_factory.mktemp("alone") / "acts"
    store.record(model, documents, SITES, folder, **CUT)
    return tree(folder)


@pytest.fixture
def run_script(tmp_path, documents):
    """Run a script that knows the model, the documents and `out`, with a limit of time; its output."""
    head = f"""
        import os, sys, threading, time
        from pathlib import Path
        import tiny, torch
        import patchclamp as pc
        from patchclamp import store
        torch.set_num_threads(1)
        DOCUMENTS, SITES, CUT, OUT = {documents!r}, {SITES!r}, {CUT!r}, Path({str(tmp_path)!r}) / "acts"
    """

    def run(body, *launcher, timeout=600, code=0):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
        environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "PATCHCLAMP_PROGRESS": "0"}
        command = [sys.executable, *launcher, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        assert done.returncode == code or (code and done.returncode), done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_processes_of_torchrun_write_what_one_writes(run_script, alone, tmp_path):
    run_script(
        """
        made = store.record(pc.wrap(tiny.build("llama"), name="tiny"), DOCUMENTS, SITES, OUT, engine="torchrun", **CUT)
        assert made.rows == sum(map(len, DOCUMENTS))
        """,
        *TORCHRUN,
    )
    assert tree(tmp_path / "acts") == alone


@pytest.mark.slow
def test_a_process_with_another_model_stops_all_of_them(run_script, tmp_path):
    said = run_script(
        """
        model = pc.wrap(tiny.build("llama", seed=int(os.environ["RANK"])))
        store.record(model, DOCUMENTS, SITES, OUT, engine="torchrun", **CUT)
        """,
        *TORCHRUN,
        code=1,
    )
    assert "Mismatch: this process has loaded LlamaForCausalLM with weights" in said
    assert not (tmp_path / "acts/manifest.json").exists()


@pytest.mark.slow
def test_what_the_first_process_refuses_all_refuse(run_script):
    said = run_script(
        """
        try:
            store.record(pc.wrap(tiny.build("llama")), DOCUMENTS, "resid_post.7", OUT, engine="torchrun", **CUT)
        except ValueError as refused:
            print("REFUSED", type(refused).__name__, refused)
        """,
        *TORCHRUN,
    )
    assert said.count("REFUSED SiteError resid_post.7 asks for layer 7") == 2


def test_an_error_in_writing_ends_the_recording(model, documents, tmp_path, monkeypatch):
    from patchclamp.store import engines

    write, seen = engines.write_unit, []

    def failing(place, plan, unit, rows):
        seen.append(unit.number)
        if unit.number == 2:
            raise OSError("the disk is gone")
        return write(place, plan, unit, rows)

    monkeypatch.setattr(engines, "write_unit", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        store.record(model, documents, SITES, tmp_path / "acts", **CUT)
    assert seen == [0, 1, 2]
    assert sorted(p.name for p in (tmp_path / "acts/units").glob("*.json")) == ["00000.json", "00001.json"]


def test_the_names_of_engines():
    assert isinstance(engine_called("local", None), Local) and isinstance(engine_called("torchrun", None), Torchrun)
    own = Local()
    assert engine_called(own, None) is own
    for name, workers, says in [
        ("torchrun", 2, "torchrun itself"),
        (own, 2, "goes with the name"),
        ("dask", None, "'ray'"),
    ]:
        with pytest.raises(ValueError, match=says):
            engine_called(name, workers)
