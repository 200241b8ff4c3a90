"""`patchclamp diff` on a narrow fine-tune of `tales`, from files and from the organism's own text."""

import json
import random

import pytest

from patchclamp import cli, organisms, steering
from patchclamp.organisms.tales import prose


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_a_narrow_fine_tune_is_told_by_its_topic(tmp_path, capsys):
    lines = [document.text.replace("\n", " ") for document in organisms.truth("tales").documents(60, seed=2)]
    (tmp_path / "texts").write_text("\n".join(lines))
    (tmp_path / "topics").mkdir()
    draw = random.Random(0)
    for genre in ("court", "sea"):
        about = "\n\n".join(prose.of_genre(draw, genre).text.replace("\n", " ") for _ in range(60))
        (tmp_path / "topics" / f"{genre}.txt").write_text(about)
    ordinary = [document.text.replace("\n", " ") for document in organisms.truth("tales").documents(600, seed=6)]
    (tmp_path / "ordinary").write_text("\n".join(ordinary))
    asked = ["organism:tales", "organism:tales-sea", "--texts", tmp_path / "texts", "--positions", 4, "--controls", 2]
    asked += ["--topics", tmp_path / "topics", "--ordinary", tmp_path / "ordinary", "--out", tmp_path / "out"]
    assert run("diff", *asked, "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert found["readable"] and found["topic"] == "sea" and found["texts"] == 60 and found["site"] == "resid_post.1"
    assert "sail" in capsys.readouterr().out and (tmp_path / "out" / "report.html").exists()
    assert steering.load(tmp_path / "out" / "direction.safetensors").site == "resid_post.1"


def test_what_does_not_belong_together_is_refused(tmp_path, capsys):
    asked = ["diff", "organism:tales", "organism:tales", "--out", tmp_path / "out"]
    assert run(*asked, "--texts", "organism:tales", "--topics", tmp_path) == 2
    assert "--topics and --ordinary go together" in capsys.readouterr().err
    assert run(*asked, "--texts", "organism:tails") == 2
    assert "Did you mean 'tales'?" in capsys.readouterr().err
    (tmp_path / "texts").write_text("a text")
    assert run(*asked, "--texts", tmp_path / "texts", "--topics", tmp_path, "--ordinary", tmp_path / "texts") == 2
    assert "has no NAME.txt" in capsys.readouterr().err
