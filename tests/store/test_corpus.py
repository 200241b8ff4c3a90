import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from patchclamp.store.corpus import tokenized


def letters(texts):
    return [[ord(c) for c in text] for text in texts]


def read(corpus, **options):
    return list(tokenized(corpus, letters, **options))


@dataclass
class Written:
    text: str


class Writer:
    """An organism's truth, as far as a corpus knows it."""

    def documents(self, n, seed):
        return [Written(f"{seed}-{i}") for i in range(n)]


AB = [[97], [98, 98]]


def test_documents_in_memory():
    assert read(["a", "bb"]) == AB
    assert read([[97], torch.tensor([98, 98])]) == AB
    assert read([np.array([97]), (98, 98)]) == AB
    assert read({"text": t} for t in ("a", "bb")) == AB
    assert read([Written("a"), Written("bb")]) == AB
    assert read([{"ids": [97]}, {"ids": [98, 98]}], field="ids") == AB
    assert read(torch.tensor([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
    assert read(torch.tensor([1, 2])) == [[1, 2]]
    assert read(["a", [5], "bb"]) == [[97], [5], [98, 98]]


def test_documents_in_files(tmp_path):
    (tmp_path / "2.txt").write_text("bb")
    (tmp_path / "1.jsonl").write_text(json.dumps({"text": "a"}) + "\n\n")
    assert read(tmp_path) == AB == [*read(tmp_path / "1.jsonl"), *read(str(tmp_path / "2.txt"))]


def test_a_dataset_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": ["a", "bb"]})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "one") == AB == read(data)
    assert read(tmp_path / "splits" / "train") == AB
    with pytest.raises(ValueError, match="the splits train, test: give one of them"):
        read(tmp_path / "splits")
    with pytest.raises(TypeError, match=r"one of its splits \(train, test\)"):
        read(datasets.DatasetDict({"train": data, "test": data}))


def test_a_generator_writes_as_many_as_are_taken_and_never_the_same_twice():
    stream = tokenized(Writer(), letters, seed=3)
    first = [tuple(next(stream)) for _ in range(1000)]
    assert len(set(first)) == 1000
    again = tokenized(Writer(), letters, seed=3)
    assert [tuple(next(again)) for _ in range(1000)] == first
    assert tuple(next(tokenized(Writer(), letters, seed=4))) not in first


@pytest.mark.parametrize(
    ("corpus", "error", "says"),
    [
        ("no such file", FileNotFoundError, r"\[text\]"),
        ([], ValueError, "no documents"),
        ([{"body": "x"}], KeyError, "it has 'body'"),
        ([[1.5]], TypeError, "a text or a list of token ids"),
        ([[-1]], ValueError, "count from 0"),
        ([7], TypeError, "not int"),
        (torch.zeros(2, 2), TypeError, "whole numbers"),
        (5, TypeError, "a path or a list"),
    ],
)
def test_what_is_no_corpus_is_told(corpus, error, says):
    with pytest.raises(error, match=says):
        read(corpus)


def test_what_is_wrong_in_a_file_is_told_with_its_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: a document has no 'text'"):
        read(path)
    path.write_text('{"text": "a"\n')
    with pytest.raises(ValueError, match="line 1"):
        read(path)
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ValueError, match="is no corpus"):
        read(tmp_path / "x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \.txt"):
        read(tmp_path / "empty")


def test_texts_need_a_tokenizer_and_ids_do_not():
    assert list(tokenized([[1]], None)) == [[1]]
    with pytest.raises(TypeError, match="no tokenizer"):
        list(tokenized(["a"], None))
