import json
import math
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.stdlib import behaviours, corpus, train
from patchclamp.organisms.stdlib.ngram import KneserNey

SMALL = train.Recipe(
    "", "", steps=6, vocabulary=400, layers=2, width=16, heads=2, hidden=24, context=32, batch=4, warmup=2
)


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:stdlib")


@pytest.fixture(scope="module")
def record():
    return organisms.recipe("stdlib")


@pytest.fixture(scope="module")
def texts():
    return corpus.split(corpus.library())


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A small library: the files of this package."""
    folder = tmp_path_factory.mktemp("library")
    for index, source in enumerate(sorted(train.Path(train.__file__).parents[2].rglob("*.py"))):
        (folder / f"module_{index}.py").write_text(source.read_text())
    return folder


def test_it_loads_quickly_and_certifies(model):
    began = time.perf_counter()
    pc.load("organism:stdlib")
    assert time.perf_counter() - began < 2
    assert model.certify().holds
    text = 'def f(x):\n    return "é"\n'
    assert model.tokenizer.decode(model.tokenizer(text)["input_ids"]) == text


def test_it_beats_every_n_gram_clearly_on_record(record):
    losses = record["held_out_loss"]
    best = min(loss for kind, loss in losses.items() if kind != "network")
    assert losses["network"] < best - 0.2


def test_it_beats_the_n_gram_here_too(model, record, texts):
    """On some held-out files of the running Python, against a trigram counted on a part of the others."""
    tested = corpus.encode(model.tokenizer, list(texts[1].values())[:6])
    stream = corpus.encode(model.tokenizer, list(texts[0].values())[:120])
    loss = train.loss_on(model.hf, tested, record["context"], most=24)
    assert loss < KneserNey(stream, 3, record["vocabulary"]).loss(tested) - 0.2
    if corpus.fingerprint(corpus.library()) == record["text"]:
        assert loss == pytest.approx(record["held_out_loss"]["network"], abs=0.5)


def test_it_does_what_code_makes_one_expect(model, record, texts):
    some = dict(list(texts[1].items())[:6])
    asked = behaviours.questions(model.tokenizer, texts[0], some, most=100)

    @torch.no_grad()
    def network(histories):
        return model.hf(histories, logits_to_keep=1).logits[:, -1]

    for kind in ("brackets", "indentation", "new_names"):
        kept = record["accuracies"][kind]
        assert kept["network"] > max(kept["4-gram"], kept["commonest"]) + 0.02, kind
        assert behaviours.accuracy(network, asked[kind]) >= kept["network"] - 0.15, kind
    # Names never seen are copied, not guessed.
    scores = record["accuracies"]
    assert scores["new_names"]["network"] > scores["new_names_first"]["network"] + 0.2


def test_the_log_and_the_checkpoints_tell_one_story(record, texts):
    rows = organisms.log("stdlib")
    assert rows[0]["held out"] == pytest.approx(math.log(record["vocabulary"]), abs=0.1)
    assert rows[-1]["held out"] < 3.2 < rows[1]["held out"]
    for step in organisms.checkpoints("stdlib"):
        early = pc.load(f"organism:stdlib@{step}")
        tested = corpus.encode(early.tokenizer, list(texts[1].values())[:4])
        final = train.loss_on(pc.load("organism:stdlib").hf, tested, record["context"], most=16)
        assert train.loss_on(early.hf, tested, record["context"], most=16) > final + 0.2


def test_truth_gives_documents_windows_and_brackets(model, record):
    known = organisms.truth("stdlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another Python has another text
        documents = known.documents(5, seed=1, kind="function")
        inputs, answers = known.sample(6, seed=0)
        tokens, targets = known.split("test")
    assert all(d.kind == "function" and d.text.startswith(("def ", "async ", "@")) for d in documents)
    assert inputs.shape == (6, behaviours.HISTORY)
    assert {model.tokenizer.decode(answer) for answer in answers} <= {")", "]", "}"}
    assert tokens.shape == targets.shape and tokens.shape[1] == record["context"]
    assert tokens[:, 1:].equal(targets[:, :-1])
    with pytest.raises(LookupError, match="There are: function, method, class"):
        known.documents(1, kind="loop")


def test_another_text_is_told(tmp_path):
    other = json.loads((organisms.path("stdlib") / "recipe.json").read_text()) | {"text": "0" * 16, "python": "3.99.0"}
    (tmp_path / "recipe.json").write_text(json.dumps(other))
    with pytest.warns(UserWarning, match=r"trained on the library of Python 3\.99\.0"):
        train.truth("stdlib", tmp_path).documents(1)


def test_windows_cover_an_epoch_once_and_depend_on_recipe_and_step_alone():
    stream = torch.arange(1000)
    per_epoch = (len(stream) - SMALL.context - 1) // SMALL.context // SMALL.batch
    windows = torch.cat([train.step_windows(stream, SMALL, step) for step in range(per_epoch)])
    assert windows.shape == (per_epoch * SMALL.batch, SMALL.context + 1)
    assert len(windows[:, 0].unique()) == len(windows) and (windows.diff(dim=1) == 1).all()
    assert train.step_windows(stream, SMALL, 9).equal(train.step_windows(stream, SMALL, 9))
    assert not train.step_windows(stream, SMALL, 0).equal(train.step_windows(stream, SMALL, per_epoch))
    with pytest.raises(ValueError, match="do not fill 4 windows"):
        train.step_windows(stream[:50], SMALL, 0)


def test_the_optimizer_is_its_two_parts():
    model = train.untrained(SMALL)
    optimizer = train.MuonAndAdam(model, 1e-2, 0.0)
    by_muon, by_adam = ({id(p) for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert len(by_muon) + len(by_adam) == len(list(model.parameters())) and not by_muon & by_adam
    assert id(model.model.embed_tokens.weight) in by_adam
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))
    again = train.MuonAndAdam(model, 1e-2, 0.0)
    again.load_state_dict(optimizer.state_dict())
    for group in again.param_groups:
        group["lr"] = 1e-2
    again.step()
    assert not any(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, library, monkeypatch):
    monkeypatch.setattr(train, "measured", lambda *given: {"held_out_loss": {}})
    whole = train.train("stdlib", tmp_path / "whole", recipe=SMALL, library=library, progress=False)
    train.train("stdlib", tmp_path / "parts", recipe=SMALL, library=library, stop_at=4, progress=False)
    assert train.train("stdlib", tmp_path / "parts", recipe=SMALL, library=library, progress=False) == whole
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(one[key].equal(two[key]) for key in one)
    kept = json.loads((tmp_path / "whole" / "recipe.json").read_text())
    assert kept["text"] == corpus.fingerprint(corpus.library(library)) and kept["python"] and kept["steps"] == 6


def test_a_checkpoint_of_another_text_is_refused(tmp_path, library, monkeypatch):
    monkeypatch.setattr(train, "measured", lambda *given: {})
    train.train("stdlib", tmp_path, recipe=SMALL, library=library, stop_at=2, progress=False)
    (library / "added.py").write_text("added = 1\n")
    with pytest.raises(ValueError, match="another recipe"):
        train.train("stdlib", tmp_path, recipe=SMALL, library=library, progress=False)


@pytest.mark.slow
def test_retraining_learns(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(train, "measured", lambda *given: {})
    losses = train.train("stdlib", tmp_path, steps=100, progress=False)
    assert sum(losses[-10:]) / 10 < 5.0 < 7.0 < sum(losses[:5]) / 5
