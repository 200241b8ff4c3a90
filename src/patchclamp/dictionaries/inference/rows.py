"""Batches of rows to learn from: of a tensor, of a store, or of a stream, over and over until there were enough."""

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from patchclamp.store.rows import held
from patchclamp.views import progress


def batches(data: Any, batch: int, tokens: int | None, seed: int, what: str) -> Iterator[Float[Tensor, "row d"]]:
    """Shuffled batches of at most `batch` rows, `tokens` in all: one pass over the data unless given.

    ValueError where the data have no end and `tokens` is missing; TypeError without `batches` and `stream`.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: expected a positive number")
    tokens, seen = total(data, tokens), 0
    data = held(data) if isinstance(data, Tensor) else data
    with progress(what, total=tokens) as advance:
        for rows in _endless(data, batch, seed):
            if not isinstance(rows, Tensor) or rows.ndim != 2:
                raise ValueError(f"expected batches of rows [row, d], got {getattr(rows, 'shape', type(rows))}")
            yield rows[: tokens - seen].float()
            seen += len(rows)
            advance(len(rows))
            if seen >= tokens:
                return


def total(data: Any, tokens: int | None) -> int:
    """How many rows `batches` gives."""
    if tokens is None:
        tokens = len(data) if isinstance(data, Tensor) else getattr(data, "rows", None)
    if tokens is None:
        raise ValueError("these data have no end: give tokens=, the number of rows to learn from")
    if tokens < 1:
        raise ValueError(f"tokens={tokens}: expected a positive number")
    return tokens


def _endless(data: Any, batch: int, seed: int) -> Iterator[Any]:
    if hasattr(data, "batches"):
        epoch = 0
        while True:
            yield from data.batches(batch, seed=seed, epoch=epoch)
            epoch += 1
    elif hasattr(data, "stream"):
        for rows in data.stream(batch, seed=seed):
            yield rows.activations
    else:
        raise TypeError(
            f"data of type {type(data).__name__}: expected a tensor [row, d], rows of a store (`batches`), or "
            "something with a `stream`, such as planted activations"
        )
