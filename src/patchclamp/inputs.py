"""Prompts in any form, as token ids with a mask: strings, lists of ids, tensors, a model's own inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from patchclamp.positions import Frame


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids and which of them are real; `text` and `offsets` where the prompts came as strings."""

    ids: Int[Tensor, "prompt pos"]
    mask: Bool[Tensor, "prompt pos"]
    text: tuple[str, ...] | None = None
    offsets: tuple[tuple[tuple[int, int], ...], ...] | None = None
    given: Int[Tensor, "prompt"] | None = None  # the padding before each prompt, before `moved_left`

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def padded(self) -> bool:
        return not bool(self.mask.all())

    @property
    def frame(self) -> Frame:
        return replace(Frame.of_mask(self.mask), texts=self.text, offsets=self.offsets, given=self.given)

    def moved_left(self, pad: int) -> "Tokens":
        """The same prompts with their padding before them, for generation."""
        if not self.padded:
            return self
        rows = [row[keep] for row, keep in zip(self.ids, self.mask, strict=True)]
        moved = pad_rows([row.tolist() for row in rows], pad, left=True)
        return replace(moved, text=self.text, offsets=self.offsets, given=self.frame.left)


def pad_rows(rows: list[list[int]], pad: int, *, left: bool = False) -> Tokens:
    """Ragged rows of ids as one padded tensor."""
    if not rows or any(len(row) == 0 for row in rows):
        raise ValueError("a prompt of no tokens" if rows else "no prompts")
    width = max(len(row) for row in rows)
    fill = [[pad] * (width - len(row)) for row in rows]
    ids = [f + r if left else r + f for r, f in zip(rows, fill, strict=True)]
    mask = [
        [left is False] * len(r) + [left] * len(f) if not left else [False] * len(f) + [True] * len(r)
        for r, f in zip(rows, fill, strict=True)
    ]
    return Tokens(torch.tensor(ids), torch.tensor(mask, dtype=torch.bool))


def tokenize(texts: list[str], tokenizer: Any, pad: int) -> Tokens:
    """Strings as right-padded ids, with the character range of each token where the tokenizer knows it."""
    if tokenizer is None:
        raise TypeError(
            "this model has no tokenizer, so that prompts must be token ids: pc.wrap(module, tokenizer=...)"
        )
    fast = getattr(tokenizer, "is_fast", False)
    encoded = [tokenizer(text, return_offsets_mapping=fast, return_attention_mask=False) for text in texts]
    tokens = pad_rows([list(e["input_ids"]) for e in encoded], pad)
    offsets = tuple(tuple((int(a), int(b)) for a, b in e["offset_mapping"]) for e in encoded) if fast else None
    return replace(tokens, text=tuple(texts), offsets=offsets)


def _length(item: Any) -> int | None:
    return len(item) if isinstance(item, (list, tuple)) or (isinstance(item, Tensor) and item.ndim) else None


def as_tokens(inputs: Any, tokenizer: Any, pad: int, attention_mask: Any = None) -> Tokens | None:
    """Tokens of any form of prompts, or None where `inputs` is no text (images, features, dictionaries of them)."""
    if attention_mask is not None and isinstance(inputs, (Tokens, Mapping)):
        raise TypeError(f"{type(inputs).__name__} holds its own mask: attention_mask goes with token ids")
    if isinstance(inputs, Tokens):
        return inputs
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, Mapping):
        return None
    if isinstance(inputs, (list, tuple)) and inputs and all(isinstance(item, str) for item in inputs):
        if attention_mask is not None:
            raise TypeError("attention_mask goes with token ids; strings get theirs from the tokenizer")
        return tokenize(list(inputs), tokenizer, pad)
    if isinstance(inputs, (list, tuple)) and len({_length(item) for item in inputs} - {None}) > 1:  # ragged rows
        if attention_mask is not None:
            raise TypeError("attention_mask goes with rows of one length; ragged rows get theirs from their lengths")
        rows = [torch.as_tensor(row) for row in inputs]
        if any(row.numel() == 0 for row in rows):
            raise ValueError("a prompt of no tokens")
        if any(row.is_floating_point() or row.ndim != 1 for row in rows):
            raise TypeError("rows of different lengths are token ids, whole numbers")
        return pad_rows([row.tolist() for row in rows], pad)
    if isinstance(inputs, (list, tuple)) and inputs and all(isinstance(item, Tensor) for item in inputs):
        inputs = torch.stack(list(inputs))
    ids = torch.as_tensor(inputs)
    if ids.numel() == 0:
        raise ValueError("a prompt of no tokens" if ids.ndim > 1 else "no prompts")
    if ids.is_floating_point() or ids.ndim > 2:
        return None
    ids = ids.reshape(1, -1) if ids.ndim < 2 else ids
    mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else torch.as_tensor(attention_mask).bool()
    mask = mask.reshape(1, -1) if mask.ndim < 2 else mask
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask {list(mask.shape)} for token ids {list(ids.shape)}: they must have one shape")
    return Tokens(ids, mask.to(ids.device))


def beginning(tokenizer: Any) -> int | None:
    """The token behind which a text out of nothing is written: that which begins one, else that which ends one."""
    known = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    return next((token for token in known if token is not None), None)
