"""Which tokens are meant: positions count real tokens, whatever the padding and however the forward pass is cut up.

    pos=None or "all"     every token                    pos=-1 or "last"        each prompt's last token
    pos=3, [1, 4]         the same in every prompt       pos=tensor [prompt, n]  its own in every prompt
    pos=slice(2, 5)       tokens 2, 3 and 4              pos=mask                a bool tensor [prompt, pos]
    pos=span("Mary")      where a text stands in each prompt

Position 0 is a prompt's first real token, also behind left padding; negative positions, and the end of an open slice,
count from the prompt's end. In generation the tokens that follow have the positions that follow. Padding is never
selected; a mask is laid out as the prompts were given.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


class PositionError(IndexError):
    """A position that a prompt does not have, or a selection that does not fit what it is used for."""


@dataclass(frozen=True)
class Span:
    """Where a text stands in each prompt: its `which` token ("last", "first" or "all") of its last occurrence."""

    text: str | tuple[str, ...]
    which: Literal["first", "last", "all"] = "last"


def span(text: str | Sequence[str], which: Literal["first", "last", "all"] = "last") -> Span:
    """Select tokens by text, one for all prompts or one for each; usable as `pos=` wherever prompts are strings."""
    if which not in ("first", "last", "all"):
        raise ValueError(f"which={which!r}: a span has a 'first' token, a 'last' token, or 'all'")
    return Span(text if isinstance(text, str) else tuple(text), which)


Position = None | int | str | slice | Sequence[int] | Tensor | Span


@dataclass(frozen=True, eq=False)
class Frame:
    """What one forward pass sees: columns `start` to `start + length` of prompts that are padded to `prompt` columns.

    `left` is the padding before each prompt and `count` its number of real tokens; columns from `prompt` on are
    generated. `offsets` are the character ranges of the tokens, where prompts came as text.
    """

    start: int
    length: int
    prompt: int
    left: Tensor
    count: Tensor
    texts: tuple[str, ...] | None = None
    offsets: tuple[tuple[tuple[int, int], ...], ...] | None = None
    reach: int = 0  # how many columns generation may add
    ordered: bool = True  # False where the second axis of a tensor is not that of tokens
    given: Tensor | None = None  # the padding before each prompt as the caller gave it, where generation has moved it

    @classmethod
    def plain(cls, batch: int, length: int) -> "Frame":
        return cls(0, length, length, torch.zeros(batch, dtype=torch.long), torch.full((batch,), length))

    @classmethod
    def unordered(cls, batch: int = 0) -> "Frame":
        """Of tensors whose second axis is not that of tokens: an image's channels, a plain network's features."""
        return replace(cls.plain(batch, 1), ordered=False)

    @classmethod
    def of_mask(cls, mask: Tensor, *, start: int = 0, length: int | None = None, prompt: int | None = None) -> "Frame":
        """From an attention mask [prompt, pos]: leading zeros are left padding, trailing ones right padding."""
        real = mask.bool().cpu()
        prompt = mask.shape[1] if prompt is None else prompt
        real = real[:, :prompt]
        left = real.int().argmax(1)
        last = real.shape[1] - 1 - real.flip(1).int().argmax(1)
        count = torch.where(real.any(1), last - left + 1, 0)
        return cls(start, mask.shape[1] - start if length is None else length, prompt, left, count)

    @property
    def batch(self) -> int:
        return len(self.left)

    @property
    def mask(self) -> Tensor:
        """Bool [prompt, pos]: the real tokens among the prompt's columns."""
        columns = torch.arange(self.prompt)
        return (columns >= self.left[:, None]) & (columns < (self.left + self.count)[:, None])

    @property
    def real(self) -> Tensor:
        """Bool [prompt, pos]: the real tokens among this pass's columns, generated ones included."""
        columns = torch.arange(self.start, self.start + self.length)
        inside = (columns >= self.left[:, None]) & (columns < (self.left + self.count)[:, None])
        return inside | (columns >= self.prompt)

    @property
    def everything(self) -> Tensor:
        """Columns [prompt, n] of all tokens so far: each prompt's position p in column p, -1 where it has none."""
        positions = torch.arange(int(self.count.max()) if len(self.count) else 0)
        prompt = torch.where(positions < self.count[:, None], self.left[:, None] + positions, -1)
        generated = torch.arange(self.prompt, max(self.prompt, self.start + self.length))
        return torch.cat([prompt, generated.expand(self.batch, -1)], dim=1)

    def logical(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Positions within each prompt of `columns`, one for each of `rows`; generated tokens follow the prompt."""
        after = self.count[rows] + columns - self.prompt
        return torch.where(columns >= self.prompt, after, columns - self.left[rows])

    def column(self, rows: Tensor, logical: Tensor) -> Tensor:
        """The columns of positions within each prompt; the inverse of `logical`."""
        after = self.prompt + logical - self.count[rows]
        return torch.where(logical >= self.count[rows], after, self.left[rows] + logical)

    def seen(self, length: int) -> "Frame":
        return self if length == self.length else replace(self, length=length)

    def columns(self, pos: Position, *, generated: bool = True) -> Tensor | None:
        """Columns [prompt, n] that `pos` names (-1 where a row has fewer), or None for all of them."""
        if pos is None or (isinstance(pos, str) and pos == "all"):
            return None
        if isinstance(pos, str):
            if pos not in ("last", "first"):
                raise PositionError(f"pos={pos!r}: say 'last', 'first', 'all', or span({pos!r}) for a text")
            pos = -1 if pos == "last" else 0
        if isinstance(pos, Span):
            return self._span(pos)
        if isinstance(pos, slice):
            return self._ragged([self._sliced(pos, row) for row in range(self.batch)])
        wanted = torch.as_tensor(pos)
        if wanted.dtype == torch.bool:
            return self._from_mask(wanted)
        if wanted.is_floating_point():
            raise PositionError(f"pos={pos!r}: positions are whole numbers")
        wanted = wanted.long().cpu()
        if wanted.ndim > 2 or (wanted.ndim == 2 and len(wanted) != self.batch):
            raise PositionError(f"positions of shape {list(wanted.shape)}: give [n], or [prompt={self.batch}, n]")
        wanted = wanted.reshape(1, -1) if wanted.ndim < 2 else wanted
        wanted = wanted.expand(self.batch, -1)
        most = self.count + (self.reach if generated else 0)
        bad = (wanted >= most[:, None]) | (wanted < -self.count[:, None])
        if bool(bad.any()):
            row, column = (int(i) for i in bad.nonzero()[0])
            raise PositionError(
                f"position {int(wanted[row, column])} of prompt {row}, which has {int(self.count[row])} tokens"
                + (f" and at most {self.reach} generated" if self.reach else "")
            )
        logical = torch.where(wanted < 0, wanted + self.count[:, None], wanted)
        return self._columns(logical)

    def _columns(self, logical: Tensor) -> Tensor:
        rows = torch.arange(self.batch)[:, None].expand(logical.shape)
        return torch.where(logical < 0, -1, self.column(rows, logical))

    def _ragged(self, rows: list[list[int]]) -> Tensor:
        """Columns of a different number of positions in each prompt, filled up with -1."""
        width = max(len(row) for row in rows)
        return self._columns(torch.tensor([row + [-1] * (width - len(row)) for row in rows]))

    def _sliced(self, pos: slice, row: int) -> list[int]:
        count = int(self.count[row])
        step = 1 if pos.step is None else pos.step
        start, stop = (
            default if end is None else end + count if end < 0 else end
            for end, default in ((pos.start, 0), (pos.stop, count))
        )
        if step < 1 or not 0 <= start < stop <= count + self.reach:
            shown = f"{'' if pos.start is None else pos.start}:{'' if pos.stop is None else pos.stop}"
            raise PositionError(
                f"positions {shown} of prompt {row}, which has {count} tokens: 0:{count} is all of them"
            )
        return list(range(start, stop, step))

    def _from_mask(self, mask: Tensor) -> Tensor:
        if list(mask.shape) != [self.batch, self.prompt]:
            raise PositionError(
                f"a mask of shape {list(mask.shape)} for prompts of [{self.batch}, {self.prompt}] tokens"
            )
        given = self.left if self.given is None else self.given
        rows = [(row.nonzero().flatten() - left).tolist() for row, left in zip(mask.cpu(), given, strict=True)]
        for index, (row, count) in enumerate(zip(rows, self.count.tolist(), strict=True)):
            if row and not 0 <= row[0] <= row[-1] < count:
                raise PositionError(f"the mask selects padding of prompt {index}, which has {count} tokens")
        if not any(rows):
            raise PositionError("a mask that selects no position")
        return self._ragged(rows)

    def _span(self, wanted: Span) -> Tensor:
        if self.texts is None or self.offsets is None:
            raise PositionError(f"span({wanted.text!r}) needs prompts given as text, not as token ids")
        texts = [wanted.text] * self.batch if isinstance(wanted.text, str) else list(wanted.text)
        if len(texts) != self.batch:
            raise PositionError(f"a span of {len(texts)} texts for {self.batch} prompts")
        rows = []
        for row, (text, prompt, offsets) in enumerate(zip(texts, self.texts, self.offsets, strict=True)):
            begin = prompt.rfind(text)
            if begin < 0:
                raise PositionError(f"prompt {row} does not contain {text!r}: {prompt!r}")
            end = begin + len(text)
            tokens = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin and b > a]
            if not tokens:
                raise PositionError(f"no token of prompt {row} covers {text!r}")
            rows.append({"first": tokens[:1], "last": tokens[-1:], "all": tokens}[wanted.which])
        return self._ragged(rows)

    def local(self, columns: Tensor, when: str = "all") -> tuple[Tensor, Tensor, Tensor]:
        """(rows, positions within this pass, ordinals) of those of `columns` that this pass computes."""
        here = (columns >= self.start) & (columns < self.start + self.length) & (columns >= 0)
        if when == "prompt":
            here &= columns < self.prompt
        elif when == "generated":
            here &= columns >= self.prompt
        rows, ordinals = here.nonzero(as_tuple=True)
        return rows, columns[rows, ordinals] - self.start, ordinals
