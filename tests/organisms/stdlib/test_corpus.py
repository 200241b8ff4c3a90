import sysconfig
from pathlib import Path

import pytest

from patchclamp.organisms.stdlib import corpus

SOURCE = "def area(width, height):\n    if width:\n        return [width * height][0]\n    return self.width\n"


@pytest.fixture
def folder(tmp_path):
    """A library of 64 files, and files that are none of it."""
    for index in range(64):
        (tmp_path / f"module_{index}.py").write_text(SOURCE.replace("area", f"area_{index}"))
    for path in ("test/test_a.py", "site-packages/other.py", "html/entities.py", "_sysconfigdata_x.py", "notes.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("left_out = 1\n")
    return tmp_path


def test_the_library_leaves_out_tests_tables_and_packages(folder):
    assert set(corpus.library(folder)) == {f"module_{index}.py" for index in range(64)}
    assert not any("left_out" in text for text in corpus.library(folder).values())


def test_the_running_library_is_the_default():
    texts = corpus.library()
    assert texts["json/__init__.py"] == Path(sysconfig.get_paths()["stdlib"], "json/__init__.py").read_text()
    assert not any("test" in Path(name).parts for name in texts)


def test_where_a_file_goes_depends_on_its_path_alone(folder):
    trained, held_out = corpus.split(corpus.library(folder))
    assert not set(trained) & set(held_out) and len(trained) + len(held_out) == 64
    (folder / "module_0.py").write_text("changed = 1\n")
    (folder / "one_more.py").write_text("added = 1\n")
    again, held_out_again = corpus.split(corpus.library(folder))
    assert set(again) >= set(trained) and set(held_out_again) >= set(held_out)
    assert [name for name in again if name in trained] == list(trained)


def test_too_few_files_to_hold_some_out():
    with pytest.raises(ValueError, match="2 files are too few"):
        corpus.split({"a.py": "", "b.py": ""})


def test_no_library_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.py files"):
        corpus.library(tmp_path)


def test_the_fingerprint_tells_texts_and_paths_apart():
    one = corpus.fingerprint({"a.py": "x", "b.py": "y"})
    assert one == corpus.fingerprint({"b.py": "y", "a.py": "x"})
    assert len({one, corpus.fingerprint({"a.py": "y", "b.py": "x"}), corpus.fingerprint({"a.py": "x"})}) == 3


def test_the_tokenizer_keeps_names_brackets_and_indentation_apart(folder):
    texts = corpus.library(folder)
    tokenizer = corpus.tokenizer(texts.values(), 320)
    ids = tokenizer(SOURCE)["input_ids"]
    pieces = [tokenizer.decode([i]) for i in ids]
    assert "".join(pieces) == SOURCE
    assert tokenizer.tokenize("self.width") == ["self", ".", "width"]
    assert tokenizer.tokenize(" = width")[-1] == "width"
    assert {"(", ")", "[", "]", "\n    ", "\n        ", "return "} <= set(pieces)
    other = "é 漢字 🙂\t\r\n"
    assert tokenizer.decode(tokenizer(other)["input_ids"]) == other
    assert corpus.tokenizer(texts.values(), 320).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_the_stream_ends_each_text_and_windows_give_the_next_token(folder):
    texts = corpus.library(folder)
    tokenizer = corpus.tokenizer(texts.values(), 320)
    stream = corpus.encode(tokenizer, texts.values())
    assert (stream == tokenizer.eos_token_id).sum() == 64 and stream[-1] == tokenizer.eos_token_id
    inputs, targets = corpus.windows(stream, 16)
    assert inputs.shape == targets.shape == ((len(stream) - 1) // 16, 16)
    assert inputs[:, 1:].equal(targets[:, :-1]) and inputs[1:, 0].equal(targets[:-1, -1])
