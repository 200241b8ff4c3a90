"""Studies are listed by reading their files, without importing anything heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from patchclamp import studies
from patchclamp.studies.catalogue import rows

HEADER = 'study = Study(name="{name}", paper="P", seed="s.txt", organism="tales")\n'


def test_names_and_rows_agree_and_are_complete():
    listed = studies.rows()
    assert [row["study"] for row in listed] == studies.names()
    assert {"patching-best-practices", "para-attention"} <= set(studies.names())
    for row in listed:
        assert set(row) == {"study", "paper", "seed", "room"} and all(row.values())
        assert row["seed"].endswith(".txt")
    assert {row["study"]: row["room"] for row in listed}["para-attention"] == "circuits"


@pytest.mark.parametrize("name", studies.names())
def test_every_study_loads_and_claims_something(name):
    study = studies.load(name)
    (row,) = [row for row in studies.rows() if row["study"] == name]
    assert (study.name, study.paper, study.seed) == (name, row["paper"], row["seed"])
    assert any(claim.kind == "finding" for claim in study.claims)
    assert sys.modules[study.claims[0].measure.__module__].__doc__


def test_listing_imports_no_torch():
    code = "import sys\nfrom patchclamp import studies\nstudies.rows()\nprint(*{'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_a_misspelt_study_is_told_the_nearest():
    with pytest.raises(LookupError, match="Did you mean 'para-attention'"):
        studies.load("para-atention")
    assert studies.load("para_attention") is studies.load("para-attention")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1\n", "has no study"),
        (HEADER.format(name="other"), "its file says 'one-mask'"),
        ('study = Study(name="one-mask", paper=PAPER, seed="s", organism="tales")\n', "must give paper"),
    ],
)
def test_a_file_with_another_header_is_refused(tmp_path: Path, text, why):
    (tmp_path / "editing").mkdir()
    (tmp_path / "editing" / "one_mask.py").write_text(text)
    with pytest.raises(SyntaxError, match=why):
        rows(tmp_path)


def test_a_new_file_is_a_new_study(tmp_path: Path):
    (tmp_path / "editing").mkdir()
    (tmp_path / "editing" / "one_mask.py").write_text(HEADER.format(name="one-mask"))
    (tmp_path / "editing" / "__init__.py").write_text("")
    assert rows(tmp_path) == [{"study": "one-mask", "paper": "P", "seed": "s.txt", "room": "editing"}]
