"""`patchclamp steer` over grids: an emulator's frames from files, a measure from a module or a file."""

import json

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp import cli
from patchclamp.organisms.physics import simulate


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tracers that spread fast and slowly, and others to steer."""
    folder = tmp_path_factory.mktemp("frames")
    for name, n, nu in (("fast", 24, 0.03), ("slow", 24, 0.005), ("start", 8, 0.005)):
        drawn = torch.Generator().manual_seed(n + int(1000 * nu))
        np.save(folder / f"{name}.npy", simulate.diffusing(n, frames=2, generator=drawn, diffusivity=nu).frames.numpy())
    names = (("--positive", "fast"), ("--negative", "slow"), ("--prompts", "start"))
    return [part for flag, name in names for part in (flag, folder / f"{name}.npy")]


def test_diffusion_is_added_to_slow_tracers(files, tmp_path, capsys):
    asked = ["--model", "organism:emulator", *files, "--sites", "module:blocks.0", "module:blocks.1", "--drop-space"]
    asked += ["--measure", "patchclamp.organisms.physics.measures:diffusivity", "--field", 0, "--steps", 3]
    asked += ["--strengths", -1, 0, 1, "--out", tmp_path / "out", "--json", tmp_path / "found.json"]
    assert run("steer", *asked) == 0
    sites = {row["site"]: row for row in json.loads((tmp_path / "found.json").read_text())["sites"]}
    down, none, up = sites["module:blocks.1"]["curve"]
    assert down["effect"] < none["effect"] < up["effect"] and none["part of the gap"] == 0
    assert up["part of the gap"] > 0.4 and up["effect"] > up["random"]
    low, high = sites["module:blocks.0"]["regimes"]
    assert low == pytest.approx(0.005, rel=0.3) and high == pytest.approx(0.03, rel=0.3)
    assert pc.steering.load(tmp_path / "out" / "blocks.1.safetensors").space == (1, 1)
    assert (tmp_path / "out" / "report.html").exists() and "diffusivity of organism:emulator" in capsys.readouterr().out


def test_what_does_not_belong_together_is_refused(files, tmp_path, capsys):
    (tmp_path / "measures.py").write_text("number = 3\n")
    asked = ["steer", "--model", "organism:emulator", *files, "--out", tmp_path / "out"]
    measured = [*asked, "--sites", "module:blocks.0", "--measure"]
    texts = ["steer", "--positive", "a.txt", "--negative", "b.txt", "--prompts", "c.txt", "--out", tmp_path / "out"]
    for arguments, said in (
        (asked, "need --measure MODULE:FUNCTION and --sites"),
        ([*asked, "--words", "sea", "--fit", "principal"], "arrays take no --words, --fit principal"),
        ([*measured, "measures"], "say MODULE:FUNCTION"),
        ([*measured, tmp_path / "measures.py:number"], "has no function 'number'"),
        ([*asked[:-3], "c.txt", *asked[-2:]], "are all texts or all arrays"),
        ([*texts, "--field", 0, "--drop-space"], "texts take no --field, --drop-space"),
        ([*texts, "--words", "sea"], "--neutral is missing"),
    ):
        assert run(*arguments) == 2
        assert said in capsys.readouterr().err
