"""The unit of work: some windows of documents, which a model reads and whose rows become one shard of every site.

    for unit in units(documents, Cut(context=1024, unit_tokens=65_536)): ...

A document longer than the context is cut into windows that the model reads apart; its rows keep their position in the
document. What a unit holds follows from the documents and the cut alone, and the order of its rows from the seed and
its number: whoever does a unit, and however often, gets the same.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from patchclamp.store.order import permutation

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Cut:
    """How documents become rows: windows of at most `context` tokens, of which the first `skip_first` are not kept,
    units of at least `unit_tokens` rows, and a share of the documents for validation, chosen by their content.
    """

    context: int = 1024
    unit_tokens: int = 65_536
    skip_first: int = 0
    validation: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.context < 1 or self.unit_tokens < 1:
            raise ValueError(f"context={self.context} and unit_tokens={self.unit_tokens} must be at least 1")
        if not 0 <= self.skip_first < self.context:
            raise ValueError(f"skip_first={self.skip_first} leaves nothing of windows of {self.context} tokens")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation={self.validation} is a share of the documents: from 0 to less than 1")

    def split(self, ids: Int[Tensor, "pos"]) -> int:
        """0 (train) or 1 (validation): the same for the same content, so that no text is on both sides."""
        digest = hashlib.sha256(f"{self.seed} ".encode() + ids.numpy().tobytes()).digest()
        return int(int.from_bytes(digest[:8], "big") < self.validation * 2**64)


@dataclass(frozen=True, eq=False)
class Labels:
    """What each row is of: the token, its document, its position there, and 0 (train) or 1 (validation)."""

    token: Int[Tensor, "row"]
    document: Int[Tensor, "row"]
    position: Int[Tensor, "row"]
    split: Int[Tensor, "row"]

    def __len__(self) -> int:
        return len(self.token)

    def __getitem__(self, index: "Tensor | slice") -> "Labels":
        return Labels(**{name: column[index] for name, column in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Unit:
    """Windows of token ids, one after another in `token`; the w-th is `token[start[w] : start[w + 1]]`.

    `document` and `offset` say where each window is from, `rows` how many rows the unit gives.
    """

    number: int
    skip_first: int
    rows: int
    token: Int[Tensor, "token"]
    start: Int[Tensor, "boundary"]
    document: Int[Tensor, "window"]
    offset: Int[Tensor, "window"]
    split: Int[Tensor, "window"]

    @property
    def lengths(self) -> Int[Tensor, "window"]:
        """Tokens of each window."""
        return self.start.diff()

    def labels(self) -> Labels:
        """Labels of the rows in the order of the text."""
        lengths = self.lengths
        within = torch.arange(len(self.token)) - self.start[:-1].repeat_interleave(lengths)
        kept = (within >= self.skip_first).nonzero().squeeze(1)[: self.rows]
        window = torch.arange(len(lengths)).repeat_interleave(lengths)[kept]
        position = (self.offset[window] + within[kept]).int()
        return Labels(self.token[kept], self.document[window], position, self.split[window])

    def order(self, seed: int) -> Int[Tensor, "row"]:
        """Which row of the text stands at each place of the shard: shuffled, those for training in front."""
        shuffled = permutation(self.rows, seed, "unit", self.number)
        return shuffled[self.labels().split[shuffled].argsort(stable=True)]

    def to_tensors(self) -> dict[str, Tensor]:
        """As tensors, for a file."""
        whole = torch.tensor([self.number, self.skip_first, self.rows])
        columns = ("token", "start", "document", "offset", "split")
        return {"unit": whole, **{name: getattr(self, name) for name in columns}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Unit":
        """What `to_tensors` gave."""
        rest = {name: tensor for name, tensor in tensors.items() if name != "unit"}
        return cls(*tensors["unit"].tolist(), **rest)


class Fingerprint:
    """A checksum over documents as they come by, and how many came."""

    def __init__(self):
        self._digest, self.documents = hashlib.sha256(), 0

    def of(self, documents: Iterable[list[int]]) -> Iterator[list[int]]:
        """The same documents, counted."""
        for ids in documents:
            self._digest.update(len(ids).to_bytes(8, "little") + torch.tensor(ids, dtype=torch.int32).numpy().tobytes())
            self.documents += 1
            yield ids

    def described(self) -> dict[str, int | str]:
        """As a plan has it."""
        return {"fingerprint": self._digest.hexdigest(), "documents": self.documents}


def units(documents: Iterable[list[int]], cut: Cut, tokens: int | None = None) -> Iterator[Unit]:
    """Documents as units of work, `tokens` rows in all (None: every one that there is).

    ValueError where the documents have fewer rows than that.
    """
    number, total, rows = 0, 0, 0
    held: list[tuple[Tensor, int, int, int]] = []
    for document, ids in enumerate(documents):
        whole = torch.tensor(ids, dtype=torch.int32)
        split = cut.split(whole)
        for offset in range(0, len(ids), cut.context):
            window = whole[offset : offset + cut.context]
            gives = len(window) - cut.skip_first
            if gives <= 0:
                continue
            held.append((window, document, offset, split))
            rows += gives
            full = tokens is not None and total + rows >= tokens
            if tokens is not None:
                rows = min(rows, tokens - total)
            if full or rows >= cut.unit_tokens:
                yield _unit(number, cut, rows, held)
                number, total, rows, held = number + 1, total + rows, 0, []
            if full:
                return
    if tokens is not None:
        raise ValueError(
            f"the corpus has {total + rows:,} rows, and tokens={tokens:,} were asked for: None takes them all"
        )
    if held:
        yield _unit(number, cut, rows, held)
    elif number == 0:
        raise ValueError(f"no document is longer than skip_first={cut.skip_first} tokens: there are no rows")


def _unit(number: int, cut: Cut, rows: int, held: list[tuple[Tensor, int, int, int]]) -> Unit:
    windows, documents, offsets, splits = zip(*held, strict=True)
    lengths = torch.tensor([0, *map(len, windows)])
    return Unit(
        number,
        cut.skip_first,
        rows,
        torch.cat(windows),
        lengths.cumsum(0),
        torch.tensor(documents),
        torch.tensor(offsets, dtype=torch.int32),
        torch.tensor(splits, dtype=torch.uint8),
    )
