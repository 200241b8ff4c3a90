"""The text of `stdlib`: the running Python's standard library, its tokenizer, and its stream of tokens.

    texts = corpus.library()                              # path -> source, in an order that never changes
    trained, held_out = corpus.split(texts)               # by a hash of the path
    tokenizer = corpus.tokenizer(trained.values(), 2048)
    stream = corpus.encode(tokenizer, trained.values())

Another version of Python has another text: `fingerprint` tells them apart.
"""

import hashlib
import keyword
import os
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

# Not library code as people write it: tests, tables, generated help, vendored or installed packages.
LEFT_OUT_FOLDERS = frozenset(
    {
        *("test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "ensurepip"),
        *("site-packages", "dist-packages", "__phello__"),
    }
)
LEFT_OUT_FILES = frozenset(("html/entities.py", "locale.py", "stringprep.py"))  # tables, nearly all of them
ONE_IN = 16
END = "<|endoftext|>"

# Names stand alone: blanks go with the keyword or the operator beside them, so that `alpha` is the same token in
# `self.alpha` as in `= alpha`, and can be copied. Brackets stand alone too, so that `foo[bar` and `foo(bar` have the
# same number of tokens and every closing bracket is one. A line break keeps the indentation after it.
PIECES = rf"(?:{'|'.join(keyword.kwlist)})\b ?|[^\W\d]\w*|\d|[()\[\]{{}}]|\n[ \t]*| ?[^\s\w()\[\]{{}}]+ ?| +|\s+"


def library(root: str | Path | None = None) -> dict[str, str]:
    """The source files of the standard library (or of the folder `root`) by path relative to it, in the order of a hash
    of the path. FileNotFoundError where the folder has none: some Pythons keep their library in a zip file.
    """
    root = Path(root or sysconfig.get_paths()["stdlib"])
    found = {}
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in LEFT_OUT_FOLDERS]  # not walked: packages can be many
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            relative = path.relative_to(root).as_posix()
            if relative not in LEFT_OUT_FILES and not path.name.startswith("_sysconfigdata"):
                found[relative] = path
    if not found:
        raise FileNotFoundError(f"{root} has no .py files: expected the source of the standard library")
    return {name: found[name].read_text(encoding="utf-8", errors="replace") for name in sorted(found, key=_hash)}


def split(texts: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Texts to train on and texts held out: one in sixteen, by a hash of its path alone.

    ValueError where one of the two is empty.
    """
    trained = {name: text for name, text in texts.items() if _hash(name) % ONE_IN}
    held_out = {name: text for name, text in texts.items() if not _hash(name) % ONE_IN}
    if not trained or not held_out:
        raise ValueError(f"{len(texts)} files are too few to hold some out (one in {ONE_IN} is): take more")
    return trained, held_out


def fingerprint(texts: Mapping[str, str]) -> str:
    """Sixteen hexadecimal digits that differ where a path or a text differs."""
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(name.encode() + b"\0" + hashlib.sha256(texts[name].encode()).digest())
    return digest.hexdigest()[:16]


def tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocabulary` tokens learnt from the texts; the same texts give the same merges."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Int[Tensor, " token"]:
    """All texts as one stream of token ids, each text ended by the end token."""
    ids: list[int] = []
    for encoded in tokenizer(list(texts), verbose=False)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    return torch.tensor(ids)


def windows(stream: Int[Tensor, " token"], context: int) -> tuple[Int[Tensor, "window pos"], Int[Tensor, "window pos"]]:
    """The stream cut into windows of `context` tokens, and the token after each; what fills no window is left."""
    cut = stream.unfold(0, context + 1, context)
    return cut[:, :-1], cut[:, 1:]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
