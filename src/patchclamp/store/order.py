"""Order out of whole numbers: the same (seed, epoch, ...) gives the same permutation, on every machine.

generator(seed, "unit", 17)                    # a torch.Generator of its own for each purpose
permutation(1000, seed, epoch)                 # Int[1000]
slices(rows_of_the_order, size)                # batches of `size` rows out of pieces of any size
"""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A generator seeded by all of `key`; keys that differ anywhere give independent streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def permutation(n: int, *key: int | str) -> Int[Tensor, "n"]:
    """The numbers below n in an order that `key` decides.

    >>> permutation(5, 0, "epoch", 1).tolist() == permutation(5, 0, "epoch", 1).tolist()
    True
    """
    return torch.randperm(n, generator=generator(*key))


def check_batches(size: int, epoch: int, start: int, rows: int | None) -> None:
    """ValueError where a reader is asked for what it cannot give."""
    if size < 1:
        raise ValueError(f"a batch has at least one row, not {size}")
    if epoch < 0 or start < 0:
        raise ValueError(f"epoch={epoch} and start={start} count from 0")
    if rows is not None and start > rows:
        raise ValueError(f"start={start} rows into an epoch that has {rows}: it is counted in rows, not in batches")


def rebatched(pieces: Iterable[tuple[Tensor, ...]], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches of exactly `size` rows (the last may have fewer) out of pieces of any size, in the same order."""
    held: list[tuple[Tensor, ...]] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece[0])
        if count < size:
            continue
        joined = _joined(held)
        whole = count - count % size
        for first in range(0, whole, size):
            yield tuple(x[first : first + size] for x in joined)
        held = [tuple(x[whole:] for x in joined)] if whole < count else []
        count -= whole
    if count:
        yield _joined(held)


def _joined(pieces: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return pieces[0] if len(pieces) == 1 else tuple(map(torch.cat, zip(*pieces, strict=True)))
