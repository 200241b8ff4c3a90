"""The command, run in this process where that says enough and in a fresh one where imports or speed are the point."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from patchclamp import cli
from tiny import build

HELP = [
    ["--help"],
    ["investigate", "--help"],
    ["doctor", "--help"],
    ["record", "--help"],
    ["train", "--help"],
    ["probe", "--help"],
    ["steer", "--help"],
    ["edit", "--help"],
    ["diff", "--help"],
    ["study", "--help"],
    ["studies", "--help"],
    ["bench", "--help"],
    ["organisms", "--help"],
    ["organisms", "train", "--help"],
]
HEAVY = ("torch", "transformers", "numpy", "plotly", "matplotlib", "sklearn", "scipy", "xarray")


def run(*arguments: object) -> int:
    """The exit status of the command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_shows_an_example_without_loading_a_room(arguments):
    watched = f"import sys; from patchclamp import cli\ntry: cli.main({arguments})\n"
    watched += f"finally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert (
        "For example:" in done.stdout and "patchclamp " + arguments[0].replace("--help", "investigate") in done.stdout
    )


def test_help_answers_within_half_a_second():
    """Processor time of the child, so that a busy machine does not decide; the fastest of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "patchclamp", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_every_command_is_in_the_help(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name in ("investigate", "doctor", "record", "train", "probe", "steer", "diff", "edit", "study", "organisms"):
        assert f"• {name}" in shown


def test_doctor_prints_and_writes_the_certificate(checkpoint, tmp_path, capsys):
    assert run("doctor", checkpoint, "--json", tmp_path / "made" / "certificate.json") == 0
    shown = capsys.readouterr().out
    assert "certificate: holds" in shown
    assert "the MLP is dense: no experts" in shown
    written = json.loads((tmp_path / "made" / "certificate.json").read_text())
    assert written["holds"] is True and written["architecture"] == "LlamaForCausalLM"
    sites = {row["site"]: row for row in written["sites"]}
    assert sites["z.0"] == {
        "site": "z.0",
        "where": "input of model.layers.0.self_attn.o_proj",
        "shape": "prompt × pos × head 4 × d_head 8",
        "equation": "z = pattern @ v, the input of the out-projection",
        "holds": True,
    }
    assert sites["k.0"]["shape"] == "prompt × pos × kv_head 2 × d_head 8"
    assert sites["q.0"]["holds"] is None


def test_doctor_ends_with_1_where_an_equation_fails(checkpoint, monkeypatch, capsys):
    """A block whose output is a little more than the sum of its parts: near enough to be found, too far to hold."""
    from patchclamp import loading

    plain = loading.load

    def leaking(name, **options):
        model = plain(name, **options)
        model.hf.model.layers[1].register_forward_hook(lambda module, args, out: out * 1.0005)
        return model

    monkeypatch.setattr(loading, "load", leaking)
    assert run("doctor", checkpoint) == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_second_stacks_are_told_apart(tmp_path):
    import patchclamp as pc

    rows = {row["site"]: row for row in cli.models.places(pc.wrap(build("t5")))}
    assert rows["encoder.z.0"]["where"].startswith("input of encoder.block.0")
    assert rows["z.0"]["where"].startswith("input of decoder.block.0")
    assert rows["encoder.z.0"]["holds"] is True and rows["cross_z.0"]["where"] != rows["z.0"]["where"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["doctor", "./no-such-folder"], "there is no folder"),
        (["doctor", "organism:tails"], "Did you mean 'tales'?"),
        (["organisms", "train", "tails"], "Did you mean 'tales'?"),
    ],
)
def test_an_error_is_one_line_without_a_traceback(arguments, said, capsys):
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("patchclamp: ") and said in shown
    assert shown.count("\n") == 1 and "Traceback" not in shown


def test_debug_lets_the_error_through():
    with pytest.raises(FileNotFoundError):
        cli.main(["doctor", "./no-such-folder", "--debug"])


@pytest.mark.parametrize(
    "arguments", [["doctr"], ["doctor"], ["doctor", "x", "--jsn", "y"], ["investigate", "--n", "few"]]
)
def test_a_misspelt_command_line_ends_with_2(arguments):
    assert run(*arguments) == 2


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli.Doctor, "run", lambda self: [].nothing)
    with pytest.raises(AttributeError):
        cli.main(["doctor", "x"])


def test_interrupted_ends_with_130(monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Doctor, "run", interrupt)
    assert run("doctor", "x") == 130
    assert "interrupted" in capsys.readouterr().err


def test_nothing_global_is_touched(checkpoint, capsys):
    import torch

    state, threads, here = torch.get_rng_state(), torch.get_num_threads(), dict(os.environ)
    run("doctor", checkpoint)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads() and here == dict(os.environ)


def test_activations_are_recorded_and_a_dictionary_is_learned_from_them(tmp_path, capsys):
    from patchclamp import dictionaries, organisms

    texts = [document.text for document in organisms.truth("tales").documents(80, seed=0)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out, site = tmp_path / "acts", "resid_post.1"
    assert run("record", "organism:tales", tmp_path / "texts.jsonl", "--sites", site, "--out", out) == 0
    assert "rows" in capsys.readouterr().out
    learn = ("train", out, "--site", site, "--part", "TopK", "--width", 32, "--out", tmp_path / "dictionary")
    assert run(*learn, "--k", 4) == 0
    found = dictionaries.load(tmp_path / "dictionary")
    assert found.width == 32 and found.k == 4
    assert run(*learn, "--l0", 4) == 2
    assert "TopK is given k; got l0" in capsys.readouterr().err


def test_steer_finds_a_direction_and_writes_its_curve(tmp_path, capsys):
    """From one place to another in `tales`: what the prompts have more of is written more often."""
    names = ("Mary", "John", "Anna", "Tom", "Paul", "Emma", "Mark", "Lucy")
    texts = {
        "high": [f"{name} went to the park. The park was big." for name in names],
        "low": [f"{name} went to the store. The store was big." for name in names],
        "prompts": [f"{name} had a bag. At the" for name in names],
    }
    for key, lines in texts.items():
        (tmp_path / key).write_text("\n".join(lines))
    files = ["--positive", tmp_path / "high", "--negative", tmp_path / "low", "--prompts", tmp_path / "prompts"]
    files += ["--neutral", tmp_path / "low", "--out", tmp_path / "out", "--json", tmp_path / "out.json"]
    options = ["--words", "park", "--strengths", 0, 2, "--budget", 9, "--sites", "resid_post.2"]
    assert run("steer", *files, *options) == 0
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["site"] == "resid_post.2" and [row["strength"] for row in kept["curve"]] == [0, 2]
    assert (tmp_path / "out" / "report.html").exists() and (tmp_path / "out" / "direction.safetensors").exists()
    assert run("steer", *files) == 2
    assert "either --words or --starts" in capsys.readouterr().err


def test_probe_reads_a_file_and_writes_every_score(tmp_path):
    rows = [f"{text},{int('park' in text)}" for name in ("Mary", "John", "Anna", "Tom", "Paul", "Emma")
            for text in (f"{name} went to the park.", f"{name} went to the store.")]  # fmt: skip
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows))
    written = tmp_path / "scores.json"
    options = [
        "--sites",
        "resid_post.0",
        "--probe",
        "means",
        "--folds",
        3,
        "--json",
        written,
        "--out",
        tmp_path / "out",
    ]
    assert run("probe", tmp_path / "texts.csv", *options) == 0
    (row,) = json.loads(written.read_text())
    assert row["score"] > 0.9 and row["shuffled"] < row["score"] and (tmp_path / "out" / "scores.pt").exists()
    lengths = [f"{'Mary went home . ' * times},{times / 2}" for times in range(1, 9)]
    (tmp_path / "lengths.csv").write_text("text,label\n" + "\n".join(lengths))
    assert run("probe", tmp_path / "lengths.csv", *options[:2], "--folds", 4, "--json", written) == 0
    (row,) = json.loads(written.read_text())
    assert row["score"] > row["shuffled"]


def test_bench_scores_methods_on_known_circuits(tmp_path):
    written = tmp_path / "table.json"
    chosen = ["--programs", "planted-circuit:induction", "--methods", "eap", "exact"]
    assert run("bench", "circuits", *chosen, "--json", written) == 0
    found = {row["method"]: row["auroc"] for row in json.loads(written.read_text())}
    assert set(found) == {"eap", "exact", "random"} and found["exact"] > 0.9 > 0.7 > found["random"]
    assert run("bench", "circuits", "--methods", "guess") == 2
