"""Documents, from wherever they are, as token ids: what a model reads while its activations are recorded.

    "texts/"             every .txt (one document) and .jsonl in a folder, by name        "lines.jsonl", "book.txt"
    "wikitext/"          a dataset that Hugging Face `datasets` saved to disk
    ["a text", "another"]                 [[5, 9, 2], [7, 1]]                 a tensor of ids, [document, pos]
    pc.organisms.truth("tales")           anything with `documents(n, seed)`: as many as are asked for

`field` is what a document is called in the lines of a .jsonl and in a dataset: text, or a list of token ids.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.model import Model

_AT_ONCE = 256  # documents that the tokenizer gets at once, and that a generator writes at once


def endless(corpus: Any) -> bool:
    """Whether a corpus writes as many documents as it is asked for."""
    return callable(getattr(corpus, "documents", None))


def tokenized(
    corpus: Any, tokenize: Callable[[list[str]], list[list[int]]] | None, *, field: str = "text", seed: int = 0
) -> Iterator[list[int]]:
    """The token ids of each document, in order; `tokenize` makes them of texts (None: only ids can be taken)."""
    documents = _documents(corpus, field, seed)
    first = True
    while chunk := list(islice(documents, _AT_ONCE)):
        texts = [document for document in chunk if isinstance(document, str)]
        if texts and tokenize is None:
            raise TypeError(
                "this model has no tokenizer, so that documents must be token ids: pc.wrap(module, tokenizer=)"
            )
        ids = iter(tokenize(texts) if texts and tokenize is not None else ())
        for document in chunk:
            yield next(ids) if isinstance(document, str) else _ids(document)
        first = False
    if first:
        raise ValueError("the corpus has no documents")


def tokenizer_of(model: Model) -> Callable[[list[str]], list[list[int]]] | None:
    """A function from texts to their token ids, as `model.run` would make them; None without a tokenizer."""
    if model.tokenizer is None:
        return None
    return lambda texts: model.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]


def _documents(corpus: Any, field: str, seed: int) -> Iterator[Any]:
    if isinstance(corpus, (str, Path)):
        return _files(Path(corpus).expanduser(), field)
    if isinstance(corpus, Tensor):
        if corpus.ndim not in (1, 2) or corpus.is_floating_point():
            raise TypeError(
                f"a corpus of token ids is whole numbers [document, pos], not {corpus.dtype} {list(corpus.shape)}"
            )
        return iter(corpus.reshape(-1, corpus.shape[-1]))
    if endless(corpus):
        return _written(corpus, field, seed)
    if isinstance(corpus, Mapping) or not isinstance(corpus, Iterable):
        said = (
            f"one of its splits ({', '.join(map(str, corpus))})" if isinstance(corpus, Mapping) else "a path or a list"
        )
        raise TypeError(f"a corpus of type {type(corpus).__name__} has no documents in order: give {said}")
    return (_one(item, field) for item in corpus)


def _written(corpus: Any, field: str, seed: int) -> Iterator[Any]:
    """Block after block, each with a seed of its own, without end."""
    block = 0
    while True:
        written = corpus.documents(_AT_ONCE, seed * 1_000_003 + block)
        if not len(written):
            raise ValueError(f"{type(corpus).__name__}.documents({_AT_ONCE}, seed) wrote nothing")
        for document in written:
            yield _one(document, field)
        block += 1


def _one(item: Any, field: str) -> Any:
    """What a document is: a text or token ids, as they are, under a field, or as `.text`."""
    if isinstance(item, Mapping):
        if field not in item:
            raise KeyError(f"a document has no {field!r}; it has {', '.join(map(repr, item))} (field= says which)")
        return item[field]
    return item if isinstance(item, (str, list, tuple, Tensor)) else getattr(item, "text", item)


def _ids(document: Any) -> list[int]:
    ids = (
        torch.as_tensor(document)
        if isinstance(document, (list, tuple, Tensor)) or hasattr(document, "__array__")
        else None
    )
    if ids is None or ids.ndim != 1 or (ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool)):
        what = type(document).__name__ if ids is None else f"{ids.dtype} {list(ids.shape)}"
        raise TypeError(f"a document is a text or a list of token ids, not {what}")
    if ids.numel() and int(ids.min()) < 0:
        raise ValueError(f"a document has the token id {int(ids.min())}: ids count from 0")
    return ids.tolist()


def _files(path: Path, field: str) -> Iterator[Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no corpus at {path}; one text is a corpus as a list of it: [text]")
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
            raise ValueError(f"{path} has the splits {', '.join(splits)}: give one of them, as {path / splits[0]}")
        if (path / "state.json").exists() and (path / "dataset_info.json").exists():
            yield from _dataset(path, field)
            return
        files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl"))
        if not files:
            raise ValueError(f"{path} has no .txt and no .jsonl, and is no dataset that `datasets` saved")
        for file in files:
            yield from _files(file, field)
    elif path.suffix == ".txt":
        yield path.read_text(encoding="utf-8")
    elif path.suffix == ".jsonl":
        yield from _lines(path, field)
    else:
        raise ValueError(f"{path} is no corpus: give a .txt, a .jsonl, or a folder of them or of a saved dataset")


def _lines(path: Path, field: str) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield _one(json.loads(line), field)
            except (ValueError, KeyError) as wrong:
                raise ValueError(f"{path}, line {number}: {wrong.args[0]}") from None


def _dataset(path: Path, field: str) -> Iterator[Any]:
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{path} is a Hugging Face dataset, which needs: pip install datasets") from None
    return (_one(row, field) for row in datasets.load_from_disk(str(path)))
