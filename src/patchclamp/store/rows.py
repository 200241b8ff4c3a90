"""What a consumer of activations reads from, wherever they are: on disk, in a bucket, in memory, or made on the fly.

    for batch in rows.batches(4096, seed=0, epoch=0, start=0): ...       # Float[row, d], shuffled
    rows.statistics().mean

The order follows from (seed, epoch) alone. `start` is the number of rows already seen in this epoch, so that
(seed, epoch, start) is the whole state of a reader, in the middle of an epoch and whatever the size of the batches.
`held(tensor)` gives activations that you have in memory the same face.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.store.order import check_batches, permutation
from patchclamp.store.statistics import Moments, Statistics


@runtime_checkable
class Rows(Protocol):
    """Activations of one site, row by row."""

    @property
    def d(self) -> int:
        """Dimensions of a row."""
        ...

    @property
    def rows(self) -> int | None:
        """Rows in an epoch; None where they never end."""
        ...

    def batches(self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[Float[Tensor, "row d"]]:
        """Shuffled batches of `size` rows, from row `start` of the epoch on; the last batch may have fewer."""
        ...

    def statistics(self, *, covariance: bool = False) -> Statistics:
        """Count, mean, variance and norms (and covariance, if asked for) of all rows."""
        ...


@runtime_checkable
class PairedRows(Protocol):
    """Activations of several sites at the same tokens: batches are tuples, one tensor a site, rows in step."""

    @property
    def d(self) -> tuple[int, ...]:
        """Dimensions of a row of each site."""
        ...

    @property
    def rows(self) -> int | None:
        """Rows in an epoch; None where they never end."""
        ...

    def batches(
        self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[tuple[Float[Tensor, "row d"], ...]]:
        """Shuffled batches of `size` rows of every site, from row `start` of the epoch on."""
        ...

    def statistics(self, *, covariance: bool = False) -> tuple[Statistics, ...]:
        """Statistics of each site."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """Activations in memory, as `Rows`."""

    tensor: Float[Tensor, "row d"]

    @property
    def d(self) -> int:
        return self.tensor.shape[1]

    @property
    def rows(self) -> int:
        return len(self.tensor)

    def batches(self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[Float[Tensor, "row d"]]:
        """Shuffled batches of `size` rows, from row `start` of the epoch on; the last batch may have fewer."""
        check_batches(size, epoch, start, self.rows)
        order = permutation(self.rows, seed, "epoch", epoch)[start:]
        return (self.tensor[part.to(self.tensor.device)] for part in order.split(size) if len(part))

    def statistics(self, *, covariance: bool = False) -> Statistics:
        """Count, mean, variance and norms (and covariance, if asked for) of all rows."""
        found = Statistics.of(Moments.of(self.tensor))
        if not covariance:
            return found
        centred = self.tensor.detach().cpu().double() - found.mean
        return found.with_covariance(centred.T @ centred / self.rows)


def held(tensor: Float[Tensor, "row d"]) -> Held:
    """Activations in memory as `Rows`; ValueError unless they are floats [row, d] with at least one row."""
    if not isinstance(tensor, Tensor) or tensor.ndim != 2 or not tensor.is_floating_point() or not len(tensor):
        what = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(f"rows are a floating-point tensor [row, d] with at least one row, not {what}")
    return Held(tensor)
