"""The recipe in examples/code_model: a user's own model, made without the package, and two tasks for it."""

import importlib
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[2] / "examples" / "code_model"
SMALL = {
    "vocabulary": 1024,
    "layers": 2,
    "width": 32,
    "heads": 2,
    "hidden": 64,
    "context": 64,
    "batch": 8,
    "steps": 40,
    "warmup": 5,
    "learning_rate": 2e-2,
    "files": 60,
}


@pytest.fixture(scope="module")
def scripts():
    """The two scripts as modules; they import each other by bare name, as when they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("train"), importlib.import_module("make_tasks")
        for name in ("train", "make_tasks"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def recipe(scripts):
    return scripts[0]


@pytest.fixture(scope="module")
def tasks(scripts):
    return scripts[1]


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """A folder trained in one go, with its losses."""
    out = tmp_path_factory.mktemp("code-model")
    return out, recipe.train(recipe.Settings(**SMALL), out)


@pytest.fixture(scope="module")
def files(recipe):
    """Half of the library: enough names."""
    return recipe.library(240)


@pytest.fixture(scope="module")
def tokenizer(recipe, files):
    """The tokenizer of the full recipe, of less text."""
    texts, _ = recipe.split(files)
    return recipe.train_tokenizer(texts, recipe.Settings().vocabulary)


def test_the_recipe_does_not_use_the_package():
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import make_tasks; print('patchclamp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_training_lowers_the_held_out_loss(recipe, trained):
    out, losses = trained
    settings = recipe.Settings(**SMALL)
    _, held_out = recipe.split(recipe.library(settings.files))
    stream = recipe.encode(AutoTokenizer.from_pretrained(out), held_out)
    before = recipe.model_loss(recipe.new_model(settings), stream, settings.context)
    assert abs(before - math.log(settings.vocabulary)) < 0.3  # it knew nothing
    assert losses["model"] < before - 1


def test_an_interrupted_run_ends_in_the_same_bits(recipe, trained, tmp_path):
    settings = recipe.Settings(**SMALL)
    assert recipe.train(settings, tmp_path, stop_after=13) is None
    assert recipe.train(settings, tmp_path) == trained[1]
    straight, resumed = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (trained[0], tmp_path))
    assert straight["model"].keys() == resumed["model"].keys()
    assert all(torch.equal(straight["model"][key], resumed["model"][key]) for key in straight["model"])


def test_a_checkpoint_of_another_run_is_refused(recipe, trained):
    with pytest.raises(ValueError, match="of another run \\(learning_rate differ\\)"):
        recipe.train(recipe.Settings(**{**SMALL, "learning_rate": 1e-3}), trained[0])


def test_training_leaves_the_global_generator_alone(recipe):
    before = torch.random.get_rng_state()
    recipe.new_model(recipe.Settings(**SMALL))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_folder_is_a_plain_transformers_checkpoint(trained):
    out, _ = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    saved = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
    assert model.config.model_type == "llama"
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    text = "def naïve(x):\n\treturn x[0] if  x else None  # 'π'\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_names_and_brackets_are_tokens_of_their_own(tokenizer):
    def pieces(text):
        return [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]

    assert pieces("\n        self.name = name") == ["\n        ", "self", ".", "name", " = ", "name"]
    assert pieces("name([self])") == ["name", "(", "[", "self", "]", ")"]
    assert pieces("return self") == ["return ", "self"]


def test_files_are_split_by_their_path_alone(recipe):
    files = {f"{i}.py": str(i) for i in range(200)}
    trained, held_out = recipe.split(files)
    assert sorted(trained + held_out) == sorted(files.values()) and len(trained) > len(held_out) > 0
    some = {name: files[name] for name in list(files)[::3]}
    assert set(recipe.split(some)[1]) == set(held_out) & set(some.values())
    with pytest.raises(ValueError, match="0 files are too few"):
        recipe.split({})


def test_batches_follow_from_the_step(recipe):
    settings = recipe.Settings(**{**SMALL, "context": 5, "batch": 3})
    stream = torch.arange(100)
    several = [next_ for next_, _ in zip(recipe.batches(stream, settings, 0), range(20), strict=False)]
    for first in (1, 6, 13):  # within an epoch, at its end, in a later one
        assert torch.equal(next(recipe.batches(stream, settings, first)), several[first])
    epoch = torch.cat(several[: (100 - 6) // 5 // 3])
    assert (epoch[:, 1:] - epoch[:, :-1] == 1).all() and len(epoch[:, 0].unique()) == len(epoch)
    with pytest.raises(ValueError, match="take more files"):
        next(recipe.batches(stream[:10], settings, 0))


def test_trigram_is_interpolated_kneser_ney(recipe):
    """Against the formula on dictionaries, word by word."""
    draw = random.Random(0)
    words = 5
    stream, held_out = ([min(draw.randrange(words), draw.randrange(words)) for _ in range(n)] for n in (80, 40))
    trigrams = Counter(zip(stream, stream[1:], stream[2:], strict=False))
    bigrams = Counter(gram[1:] for gram in trigrams)
    unigrams = Counter(gram[1:] for gram in bigrams)

    def probability(history, word):
        table: Counter = (unigrams, bigrams, trigrams)[len(history)]
        if not history:
            return (table[(word,)] + 1) / (sum(table.values()) + words)
        after = {gram: seen for gram, seen in table.items() if gram[:-1] == history}
        shorter = probability(history[1:], word)
        if not after:
            return shorter
        counts = list(table.values())
        discount = counts.count(1) / (counts.count(1) + 2 * counts.count(2))
        seen = max(table[(*history, word)] - discount, 0)
        return (seen + discount * len(after) * shorter) / sum(after.values())

    assert math.isclose(sum(probability((1, 0), word) for word in range(words)), 1)
    surprises = [
        -math.log(probability((a, b), c)) for a, b, c in zip(held_out, held_out[1:], held_out[2:], strict=False)
    ]
    ours = recipe.trigram_loss(torch.tensor(stream), torch.tensor(held_out), words)
    assert math.isclose(ours, sum(surprises) / len(surprises), rel_tol=1e-5)


@pytest.fixture(scope="module")
def written(tasks, files, tokenizer):
    """Rows of both tasks, by name, and the source they must be new to."""
    return tasks.make_tasks(files, tokenizer, n=50, seed=0), "\n".join(files.values())


@pytest.mark.parametrize("name", ["brackets", "repeat"])
def test_rows_align_token_by_token(written, tokenizer, name):
    rows = written[0][name]
    assert len({row["clean"] for row in rows}) == 50
    for row in rows:
        clean, corrupt = tokenizer(row["clean"])["input_ids"], tokenizer(row["corrupt"])["input_ids"]
        assert len(clean) == len(corrupt) and clean != corrupt
        for answer in (row["answer"], row["wrong"]):
            assert (
                tokenizer(row["clean"] + answer)["input_ids"][:-1] == clean
            )  # one token, and the prompt stays as it was


def test_each_row_has_one_right_answer(written):
    for row in written[0]["brackets"]:
        for prompt, answer in ((row["clean"], row["answer"]), (row["corrupt"], row["wrong"])):
            opened = [character for character in prompt if character in "(["]
            assert len(opened) == 2 and {"(": ")", "[": "]"}[opened[-1]] == answer and not set(prompt) & set(")]")
    for row in written[0]["repeat"]:
        for prompt, answer in ((row["clean"], row["answer"]), (row["corrupt"], row["wrong"])):
            assert prompt.endswith(f"self.{answer} = ")


def test_rows_are_balanced_and_new(written):
    rows, source = written
    assert Counter(row["answer"] for row in rows["brackets"]) == {"]": 25, ")": 25}
    for row in rows["brackets"]:
        for prompt in (row["clean"], row["corrupt"]):
            last = re.findall(r"\w+[\[(]\w+$", prompt)
            assert len(last) == 1 and last[0] not in source
    for row in rows["repeat"]:
        assert row["clean"] + row["answer"] not in source and row["corrupt"] + row["wrong"] not in source


def test_rows_follow_from_the_seed(tasks):
    names = ["alpha", "beta", "gamma", "delta", "epsilon"]
    for make in (tasks.bracket_row, tasks.repeat_row):
        first, again, other = (tasks.draw_rows(make, names, "", 5, seed) for seed in (0, 0, 1))
        assert first == again != other
    known = "self.alpha = alpha"
    assert not any("alpha" in row.values() for row in tasks.draw_rows(tasks.repeat_row, names, known, 4, 0))
    with pytest.raises(ValueError, match=r"2 names gave 2 new rows, 5 were asked for"):
        tasks.draw_rows(tasks.repeat_row, names[:2], "", 5, 0)


def test_an_untrained_model_is_at_chance(recipe, tasks, tokenizer, written):
    """Half over clean and corrupted together: were rows lopsided, or the two sides mixed up, this would show."""
    model = recipe.new_model(recipe.Settings())
    for rows in written[0].values():
        shares = tasks.accuracy(model, tokenizer, rows)
        assert 0.3 < (shares["clean"] + shares["corrupt"]) / 2 < 0.7
        assert shares["clean first"] < 0.2


def test_accuracy_refuses_what_does_not_align(recipe, tasks, tokenizer):
    model = recipe.new_model(recipe.Settings())
    row = {"clean": "name[self", "corrupt": "name(self", "answer": "]", "wrong": ")"}
    with pytest.raises(ValueError, match="do not align"):
        tasks.accuracy(model, tokenizer, [{**row, "corrupt": "name((self"}])
    with pytest.raises(ValueError, match="expected 1: take other names"):
        tasks.accuracy(model, tokenizer, [{**row, "answer": "]]"}])
    with pytest.raises(ValueError, match="expected one length"):
        tasks.accuracy(model, tokenizer, [row, {**row, "clean": "name[self.name", "corrupt": "name(self.name"}])


@pytest.mark.slow
def test_the_full_recipe_learns_to_close_brackets(recipe, tasks, tmp_path):
    """From the command line, as the README of the example says; minutes."""
    run = [sys.executable, FOLDER / "train.py", "--out", tmp_path / "model", "--threads", str(torch.get_num_threads())]
    subprocess.run(run, check=True)
    subprocess.run(
        [sys.executable, FOLDER / "make_tasks.py", tmp_path / "model", "--out", tmp_path / "tasks"], check=True
    )
    model, tokenizer = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    for name in ("brackets", "repeat"):
        lines = (tmp_path / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        shares = tasks.accuracy(model, tokenizer, [json.loads(line) for line in lines])
        assert min(shares["clean"], shares["corrupt"]) >= 0.85, (name, shares)
    settings = recipe.Settings()
    trained, held_out = (recipe.encode(tokenizer, texts) for texts in recipe.split(recipe.library()))
    trigram = recipe.trigram_loss(trained, held_out, settings.vocabulary)
    assert recipe.model_loss(model, held_out, settings.context) < trigram - 0.3
