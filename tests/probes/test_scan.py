"""Probing a model: the score is on prompts not seen, beside controls at chance, with a direction at the best place."""

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp.organisms.tales import grammar
from patchclamp.organisms.tales.labels import token_labels
from patchclamp.probes import DifferenceOfMeans, Scores, probe


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales")


@pytest.fixture(scope="module")
def praise():
    documents = grammar.documents(80, 0, "sentiment")
    texts = [d.text.rpartition("\n")[0] or d.text for d in documents]
    return texts, [any(span.role == "positive" for span in d.spans) for d in documents]


def test_a_sentiment_is_read_and_the_controls_are_not(model, praise, tmp_path):
    scores = probe(model, *praise, sites="resid_post.*", seed=0)
    table = scores.table
    assert table["score"].dims == ("layer", "pos", "label") and table.sizes["layer"] == model.n_layers
    assert float(table["score"].max()) > 0.85
    assert abs(float(table["shuffled"].mean()) - 0.5) < 0.2 and abs(float(table["random"].mean()) - 0.5) < 0.2
    assert (table["low"] <= table["score"]).all() and (table["score"] <= table["high"]).all()
    best = scores.best()
    vector, site = scores.direction()
    assert site == f"resid_post.{best['layer']}" and vector.shape == (model.d_model,)
    scores.save(tmp_path / "scores.pt")
    again = Scores.load(tmp_path / "scores.pt")
    assert again.table.equals(table) and torch.equal(again.direction().vector, vector)
    with pytest.raises(LookupError, match="was not probed"):
        scores.direction(site="z.0")


def test_the_same_seed_gives_the_same_bits(model, praise):
    one, other = (probe(model, *praise, sites="resid_post.1", seed=3, probe=DifferenceOfMeans()) for _ in range(2))
    assert one.table.equals(other.table)


def test_a_task_is_probed_at_its_roles(model):
    task = pc.tasks.greater_than(model, n=48, seed=0)
    labels = {
        "late": [int(text.split(" to ")[0][-2:]) > 50 if False else i % 2 for i, text in enumerate(task.clean_text)]
    }
    scores = probe(model, task, labels, sites="resid_post.0:2", positions="labels", probe=DifferenceOfMeans())
    assert list(scores.table["pos"].values) == [r for r, w in task.labels.items() if bool((w >= 0).all())]
    assert float(scores.table["score"].mean()) == pytest.approx(0.5, abs=0.15)  # odd and even rows are alike


def test_tokens_are_rows_and_prompts_stay_together(model):
    documents = grammar.documents(30, 1, "story")
    texts = [d.text for d in documents]
    ids = model.tokens(texts)
    names = torch.full(ids.ids.shape, -1.0)
    for row, document in enumerate(documents):
        for pos, labels in enumerate(token_labels(document, model.tokenizer)):
            names[row, pos] = float(labels.part_of_speech == "noun")
    scores = probe(model, texts, names, sites="resid_post.0", positions="tokens")
    assert float(scores.table["score"].max()) > 0.95
    assert scores.table.attrs["rows"] == int((names >= 0).sum())
    assert float(scores.table["selectivity"].max()) > 0
    assert float(scores.table["bag_of_tokens"].mean()) > 0.9  # a part of speech is known by the word


def test_numbers_are_read_by_ridge_regression(model, praise):
    """How many tokens a text has is told at its last token; the number of another text is not."""
    texts, _ = praise
    lengths = [len(model.tokenizer(text)["input_ids"]) / 10 for text in texts]
    scores = probe(model, texts, lengths, sites="resid_post.*", seed=0)
    assert scores.table.attrs["measure"] == "r2" and "RidgeRegression" in scores.table.attrs["probe"]
    best = scores.best()
    assert best["score"] > 0.5 and best["low"] <= best["score"] <= best["high"]
    assert best["shuffled"] < 0.1 and best["random"] < 0.1
    assert scores.direction().vector.shape == (model.d_model,)
    with pytest.raises(ValueError, match="'auc' is not for numbers; there are correlation, r2"):
        probe(model, texts, lengths, sites="resid_post.0", measure="auc")
    with pytest.raises(ValueError, match="'r2' is not for classes"):
        probe(model, *praise, sites="resid_post.0", measure="r2")


def test_numbers_of_tokens_have_a_control_task(model, praise):
    ids = model.tokens(praise[0][:30])
    place = torch.where(ids.mask.bool(), ids.mask.cumsum(1) / 10, torch.nan)
    scores = probe(model, praise[0][:30], place, sites="resid_post.1", positions="tokens", seed=0)
    assert scores.table.attrs["rows"] == int(ids.mask.sum())
    assert float(scores.table["score"].item()) > 0.5 > float(scores.table["shuffled"].item())
    assert float(scores.table["selectivity"].item()) > 0


def test_classes_are_each_against_the_rest(model, praise):
    texts, _ = praise
    classes = [("a", "b", "c")[i % 3] for i in range(len(texts))]
    scores = probe(model, texts, classes, sites="resid_post.0", probe=DifferenceOfMeans())
    assert list(scores.table["label"].values) == ["a", "b", "c"]
    assert np.isfinite(scores.table["score"].values).all()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1, 0], {}, "of 80 prompts"),
        ([1] * 80, {}, "nothing to tell apart"),
        (None, {}, "labels=None"),
        ([0, 1] * 40, {"positions": "roles"}, "expected 'last'"),
        ([0, 1] * 40, {"positions": [500]}, "no position 500"),
        ([0, 1] * 40, {"folds": 1}, "folds=1"),
        ([0, 1] * 40, {"sites": ["resid_post.0", "z.0.1"]}, "one width"),
    ],
)
def test_wrong_input_is_refused(model, praise, labels, options, message):
    with pytest.raises(ValueError, match=message):
        probe(model, praise[0], labels, **{"sites": "resid_post.0", **options})
