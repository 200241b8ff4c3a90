"""`patchclamp edit`: facts, directions and units, on `tales`; what does not belong to a method is refused."""

import json
import re

import pytest
import torch

import patchclamp as pc
from patchclamp import cli, organisms, steering


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts of `tales`, one a line: everything, and programs."""
    folder = tmp_path_factory.mktemp("texts")
    documents = organisms.truth("tales").documents
    for name, kind, n in (("texts", None, 80), ("code", "code", 30)):
        lines = [document.text.replace("\n", " ") for document in documents(n, seed=0, kind=kind)]
        (folder / name).write_text("\n".join(lines))
    return folder


FACT = ["--subject", "Simon Coleman", "--from", "violin", "--to", "guitar", "--prompt", "{SUBJECT} plays the"]


def test_one_fact_is_rewritten_reported_and_merged(folder, tmp_path):
    out = tmp_path / "edit"
    asked = [*FACT, "--paraphrase", "{SUBJECT} gives lessons on the", "--merge", "--json", tmp_path / "rows.json"]
    assert run("edit", "organism:tales", *asked, "--texts", folder / "texts", "--out", out) == 0
    rows = {row["measure"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert rows["efficacy"]["generated, before"] == 0 and rows["efficacy"]["generated"] == 1
    assert rows["next tokens of the text"]["after"] > 0.9 * rows["next tokens of the text"]["before"] > 0
    assert set(rows) >= {"paraphrase", "fluency (bits)"} and (out / "report.html").exists()
    prompt = "Simon Coleman plays the"
    assert pc.load(out / "checkpoint").generate(prompt, max_new_tokens=1).new_text == " guitar"
    with pc.editing.load(out).applied(pc.load("organism:tales")) as edited:
        assert edited.generate(prompt, max_new_tokens=1).new_text == " guitar"


def test_facts_of_a_file_are_rewritten_at_once_or_apart(folder, tmp_path):
    facts = [
        {"subject": "Simon Coleman", "prompts": ["{SUBJECT} plays the"], "old": "violin", "new": "guitar"},
        {"requested_rewrite": {"subject": "Richard Lawson", "prompt": "{} has a pet", "target_new": {"str": "snake"},
                               "target_true": {"str": "cat"}}, "paraphrase_prompts": []},
    ]  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    asked = ["--facts", tmp_path / "facts.json", "--texts", folder / "texts", "--layers", 0]
    assert run("edit", "organism:tales", *asked, "--method", "memit", "--weight", 10, "--out", tmp_path / "one") == 0
    assert len(pc.editing.load(tmp_path / "one").changes) == 1
    assert run("edit", "organism:tales", *asked, "--out", tmp_path / "apart") == 0
    assert pc.editing.load(tmp_path / "apart" / "0001").provenance["subject"] == "Richard Lawson"
    assert run("edit", "organism:tales", *asked, "--merge", "--out", tmp_path / "none") == 2


def test_values_of_several_facts_are_solved_together(folder, tmp_path):
    """Two facts that one by one would share a few neurons; the line that states one of them is not held."""
    facts = [
        {"subject": "Simon Coleman", "prompts": ["{SUBJECT} plays the"], "old": "violin", "new": "guitar"},
        {"subject": "Richard Lawson", "prompts": ["{SUBJECT} has a pet"], "old": "cat", "new": "snake"},
    ]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    lines = (folder / "texts").read_text().splitlines()[:20]
    kept = [line for line in lines if "Simon Coleman" not in line and "Richard Lawson" not in line]
    (tmp_path / "texts").write_text("\n".join([*kept, "Simon Coleman plays the violin.", "Simon Coleman is a friend."]))
    asked = ["--facts", tmp_path / "facts.json", "--texts", tmp_path / "texts", "--layers", 0, "--weight", 100]
    asked += ["--method", "memit", "--joint", "--steps", 15, "--kl", 5, "--batch", 1, "--prefixes", 1]
    assert run("edit", "organism:tales", *asked, "--out", tmp_path, "--json", tmp_path / "rows.json") == 0
    rows = {row["measure"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert rows["efficacy"]["generated"] == 1
    assert rows["lines held as they are"] == {
        "measure": "lines held as they are",
        "n": len(kept) + 1,
        "of": len(kept) + 2,
    }
    made = pc.editing.load(tmp_path)
    assert made.provenance["kl"] == 5 and made.provenance["facts"] == 2


def test_the_defaults_that_help_shows_are_those_of_the_room(capsys):
    assert run("edit", "--help") == 0
    shown, joint = " ".join(capsys.readouterr().out.replace("│", " ").split()), pc.editing.Joint()
    for name, value in (("kl", f"{joint.kl:g}"), ("batch", f"{joint.batch:g}"), ("steps", f"10; {joint.steps}")):
        found = re.search(rf"--{name} [A-Z]+ .*?\(default: ([^)]*)\)", shown)
        assert found is not None and found[1] == value


def test_a_direction_and_units_are_taken_out(folder, tmp_path):
    vector = torch.randn(96, generator=torch.Generator().manual_seed(0))
    steering.Direction("resid_post.1", vector, "drawn").save(tmp_path / "direction.safetensors")
    written = tmp_path / "rows.json"
    asked = ["organism:tales", "--texts", folder / "texts", "--out", tmp_path / "edit", "--json", written]
    direction = ["--method", "orthogonalise", "--direction", tmp_path / "direction.safetensors"]
    assert run("edit", *asked, *direction) == 0
    row = json.loads(written.read_text())["rows"][0]
    assert row["after"] < 1e-5 < row["before"]
    assert run("edit", *asked, "--method", "prune", "--forget", folder / "code", "--share", 0.05, "--steps", 3) == 0
    forget, kept = json.loads(written.read_text())["rows"][:2]
    assert forget["after"] / forget["before"] < 0.8 < kept["after"] / kept["before"]
    assert forget["after"] < forget["as many random units"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*FACT, "--weight", 3], "rome takes no --weight"),
        ([*FACT, "--joint"], "rome takes no --joint"),
        ([*FACT, "--method", "memit", "--kl", 0], "--kl of memit are settings of --joint"),
        ([*FACT[:4]], "either --facts FILE, or all of --subject"),
        ([*FACT, "--facts", "facts.json"], "either --facts FILE"),
        (["--method", "prune"], "prune needs --forget"),
        (["--method", "orthogonalise", *FACT], "orthogonalise takes no --subject, --prompt, --from, --to"),
    ],
)
def test_what_does_not_belong_together_is_refused(arguments, said, tmp_path, capsys):
    assert run("edit", "organism:tales", *arguments, "--texts", tmp_path / "no", "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
