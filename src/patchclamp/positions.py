"""Which tokens are meant: positions count real tokens, whatever the padding and however the forward pass is cut up.

    pos=None or "all"     every position                pos=-1 or "last"       each prompt's last token
    pos=3, [1, 4], 2:5    the same in every prompt       pos=tensor [prompt, n]  its own in every prompt
    pos=mask              a bool tensor [prompt, pos]    pos=span("Mary")        where a text stands in each prompt

Position 0 is a prompt's first real token, also behind left padding; negative positions count from the prompt's end.
In generation the tokens that follow have the positions that follow.
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
    """Select tokens by text: one text for all prompts, or one for each; usable as `pos=` wherever prompts are strings."""
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

    @classmethod
    def plain(cls, batch: int, length: int) -> "Frame":
        return cls(0, length, length, torch.zeros(batch, dtype=torch.long), torch.full((batch,), length))

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
            rows = [list(range(int(n)))[pos] for n in self.count]
            if not any(rows):
                raise PositionError(f"positions {pos.start}:{pos.stop} select no token of prompts of {self.count.tolist()}")
            width = max(len(row) for row in rows)
            padded = [[int(left) + p for p in row] + [-1] * (width - len(row)) for row, left in zip(rows, self.left, strict=True)]
            return torch.tensor(padded)
        if isinstance(pos, Tensor) and pos.dtype == torch.bool:
            return self._from_mask(pos)
        wanted = torch.as_tensor(pos).long().cpu()
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
        return logical + self.left[:, None]

    def _from_mask(self, mask: Tensor) -> Tensor:
        if list(mask.shape) != [self.batch, self.prompt]:
            raise PositionError(f"a mask of shape {list(mask.shape)} for prompts of [{self.batch}, {self.prompt}] tokens")
        rows = [row.nonzero().flatten().tolist() for row in mask.cpu()]
        width = max(len(row) for row in rows)
        if width == 0:
            raise PositionError("a mask that selects no position")
        return torch.tensor([row + [-1] * (width - len(row)) for row in rows])

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
        width = max(len(row) for row in rows)
        return torch.tensor(
            [[int(left) + t for t in row] + [-1] * (width - len(row)) for row, left in zip(rows, self.left, strict=True)]
        )

    def local(self, columns: Tensor, when: str = "all") -> tuple[Tensor, Tensor, Tensor]:
        """(rows, positions within this pass, ordinals) of those of `columns` that this pass computes."""
        here = (columns >= self.start) & (columns < self.start + self.length) & (columns >= 0)
        if when == "prompt":
            here &= columns < self.prompt
        elif when == "generated":
            here &= columns >= self.prompt
        rows, ordinals = here.nonzero(as_tuple=True)
        return rows, columns[rows, ordinals] - self.start, ordinals
