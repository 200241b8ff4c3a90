"""Files of labelled texts, and what is said of those that are none."""

import json

import pytest

import patchclamp as pc
from patchclamp.probes import KSparse, Ridge, SparseRegression, probe_file
from patchclamp.probes.files import by_name, read


def test_both_formats_hold_the_same(tmp_path):
    rows = [
        {"text": "x", "labels": {"p": 1, "q": 0}, "group": 1},
        {"text": "y", "labels": {"p": 0, "q": 1}, "group": 2},
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text("text,p,q,group\nx,1,0,1\ny,0,1,2\n")
    expected = (["x", "y"], {"p": [1, 0], "q": [0, 1]}, ["1", "2"])
    assert read(tmp_path / "a.jsonl") == expected and read(tmp_path / "a.csv") == expected


def test_a_file_is_probed(tmp_path):
    lines = [
        f"{word} is {feeling},{feeling}" for word in ("He", "She", "It", "Mary", "John") for feeling in ("good", "bad")
    ]
    (tmp_path / "feelings.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    scores = probe_file(pc.load("organism:tales"), tmp_path / "feelings.csv", sites="resid_post.0", probe="means")
    assert float(scores.table["score"].item()) > 0.9


def test_a_file_of_numbers_is_probed(tmp_path):
    """How long a text is, in tens of words: by default ridge regression and R², and where a probe for numbers asks."""
    texts = [("Mary went home . " * times).strip() for times in range(1, 13)]
    rows = [f"{text},{len(text.split()) / 10}" for text in texts]
    (tmp_path / "lengths.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    model = pc.load("organism:tales")
    scores = probe_file(model, tmp_path / "lengths.csv", sites="resid_post.0", folds=4)
    assert scores.table.attrs["measure"] == "r2" and float(scores.table["score"].item()) > 0.5
    assert float(scores.table["shuffled"].item()) < float(scores.table["score"].item())
    (tmp_path / "words.csv").write_text("text,label\na,1\nb,two\n")
    with pytest.raises(ValueError, match="ridge-regression reads numbers"):
        probe_file(model, tmp_path / "words.csv", probe="ridge-regression")


def test_probes_are_named():
    assert isinstance(by_name("ridge"), Ridge)
    sparse = by_name("sparse:3:l1")
    assert isinstance(sparse, KSparse) and (sparse.k, sparse.selector) == (3, "l1")
    few = by_name("sparse-regression:2")
    assert isinstance(few, SparseRegression) and (few.k, few.selector) == (2, "greedy")
    with pytest.raises(LookupError, match="Did you mean 'logistic'"):
        by_name("logistics")


def test_a_bad_line_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": 1}\n{"text": "y"}\n')
    with pytest.raises(ValueError, match="line 2: expected text and label"):
        read(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"ends in \.jsonl or \.csv"):
        read(tmp_path / "a.txt")
