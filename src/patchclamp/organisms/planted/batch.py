"""Some rows of planted activations with their codes, kept sparse: `batch.fires`, `batch.coefficients`, `batch[:10]`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows `start`, `start + 1`, ... of a stream.

    activations  Float[row, d]; with several models Float[row, model, d]
    offsets, indices, values  the codes: features `indices[offsets[i]:offsets[i + 1]]` fire in row i, with these values
    features     how many there are
    angles       Float[row, circle], radians; nan where the circle is silent; None without circles
    units        Float[row, unit]: the teacher's hidden units; None without a teacher
    outputs      Float[row, d]: what the teacher makes of the activations; None without one
    """

    activations: Float[Tensor, "row *model d"]
    offsets: Int[Tensor, "rows_and_one"]
    indices: Int[Tensor, "firing"]
    values: Float[Tensor, "firing"]
    features: int
    start: int = 0
    angles: Float[Tensor, "row circle"] | None = None
    units: Float[Tensor, "row unit"] | None = None
    outputs: Float[Tensor, "row d"] | None = None

    def __len__(self) -> int:
        return len(self.activations)

    @property
    def rows(self) -> Int[Tensor, "firing"]:
        """The row in this batch of each of `indices` and `values`."""
        counts = self.offsets.diff()
        return torch.arange(len(self), device=counts.device).repeat_interleave(counts)

    @property
    def fires(self) -> Bool[Tensor, "row feature"]:
        """Which features fire in which row."""
        dense = torch.zeros(len(self), self.features, dtype=torch.bool, device=self.values.device)
        dense[self.rows, self.indices] = True
        return dense

    @property
    def coefficients(self) -> Float[Tensor, "row feature"]:
        """The codes z, zero where a feature is silent."""
        dense = torch.zeros(len(self), self.features, dtype=self.values.dtype, device=self.values.device)
        dense[self.rows, self.indices] = self.values
        return dense

    def padded(self) -> tuple[Int[Tensor, "row most"], Float[Tensor, "row most"]]:
        """The codes as (indices, values) with as many columns as the fullest row; spare places hold feature 0 with
        value 0, so that they add nothing when decoded.
        """
        counts = self.offsets.diff()
        column = torch.arange(len(self.values), device=counts.device) - self.offsets[:-1].repeat_interleave(counts)
        shape = (len(self), int(counts.max()) if len(self) else 0)
        indices, values = self.indices.new_zeros(shape), self.values.new_zeros(shape)
        indices[self.rows, column] = self.indices
        values[self.rows, column] = self.values
        return indices, values

    def __getitem__(self, part: slice) -> "Batch":
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError(f"a batch is cut by rows, batch[first:stop], not by {part!r}")
        first, stop, _ = part.indices(len(self))
        stop = max(first, stop)
        low, high = int(self.offsets[first]), int(self.offsets[stop])
        return replace(
            self,
            start=self.start + first,
            offsets=self.offsets[first : stop + 1] - low,
            indices=self.indices[low:high],
            values=self.values[low:high],
            **{name: rows[first:stop] for name, rows in self._by_row().items()},
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same rows on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})

    def _by_row(self) -> dict[str, Tensor]:
        names = ("activations", "angles", "units", "outputs")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def join(batches: Sequence[Batch]) -> Batch:
    """Batches that follow one another, as one."""
    first = batches[0]
    if len(batches) == 1:
        return first
    ends = torch.tensor([0, *(int(batch.offsets[-1]) for batch in batches[:-1])]).cumsum(0).tolist()
    starts = [batch.offsets[:-1] + end for batch, end in zip(batches, ends, strict=True)]
    return replace(
        first,
        offsets=torch.cat([*starts, batches[-1].offsets[-1:] + ends[-1]]),
        indices=torch.cat([batch.indices for batch in batches]),
        values=torch.cat([batch.values for batch in batches]),
        **{name: torch.cat([getattr(batch, name) for batch in batches]) for name in first._by_row()},
    )
