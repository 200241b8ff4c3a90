"""What a run writes down: which sites, at which positions, reduced how; and the tape that a run writes on.

    keep("resid_post.*", positions=-1, device="cpu")       keep("mlp_post.*", reduce=TopK(32))

A tape joins what the passes of a run bring by, a prompt and then token after token in generation, into one tensor.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.positions import Frame, Position, PositionError
from patchclamp.sites import Site


class Reduction(Protocol):
    """Makes an activation smaller as it is recorded, one position at a time."""

    def __call__(self, x: Tensor) -> "Tensor | TopKValues": ...


@dataclass(frozen=True)
class Norm:
    """The Euclidean norm over the last dimension."""

    def __call__(self, x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any"]:
        return x.norm(dim=-1)


@dataclass(frozen=True)
class Project:
    """Dot products with directions: [..., d] to [..., n]."""

    directions: Float[Tensor, "n d"]

    def __call__(self, x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any n"]:
        if self.directions.ndim not in (1, 2) or self.directions.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"directions {list(self.directions.shape)} for activations of {x.shape[-1]} features: give [n, d]"
            )
        return x @ self.directions.to(x).reshape(-1, x.shape[-1]).T


class TopKValues(NamedTuple):
    """The largest entries of the last dimension and where they are."""

    values: Float[Tensor, "*any k"]
    indices: Int[Tensor, "*any k"]


@dataclass(frozen=True)
class TopK:
    """The k largest entries of the last dimension; the recording holds `TopKValues(values, indices)`."""

    k: int

    def __call__(self, x: Tensor) -> TopKValues:
        return TopKValues(*x.topk(self.k, dim=-1))


@dataclass(frozen=True)
class Mean:
    """The mean over each prompt's real positions: [prompt, pos, ...] to [prompt, ...]."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


REDUCTIONS: dict[str, Reduction] = {"norm": Norm(), "mean": Mean()}


@dataclass(frozen=True, eq=False)
class Keep:
    """What to record of some sites: positions, a reduction, where to put it and in which dtype."""

    sites: "str | Site | tuple[str | Site, ...]"
    positions: Position = None
    reduce: Reduction | None = None
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None

    def trim(self, x: Tensor) -> "Tensor | TopKValues":
        """What to hold on to: reduced, moved, and no small view that keeps a large tensor alive."""
        small = x if self.reduce is None else self.reduce(x)
        return TopKValues(*map(self._moved, small)) if isinstance(small, TopKValues) else self._moved(small)

    def _moved(self, x: Tensor) -> Tensor:
        if self.device is not None or self.dtype is not None:
            x = x.to(device=self.device, dtype=self.dtype if x.is_floating_point() else None)
        return x.clone() if x.untyped_storage().nbytes() > 2 * x.numel() * x.element_size() else x

    def same(self, other: "Keep") -> bool:
        """Whether two keeps of one site come to the same."""
        by_value = (int, str, TopK)
        pairs = [(getattr(self, n), getattr(other, n)) for n in ("positions", "reduce", "device", "dtype")]
        return all(a is b or (isinstance(a, by_value) and a == b) for a, b in pairs)


def keep(
    sites: "str | Site | list[str | Site] | tuple[str | Site, ...]",
    *,
    positions: Position = None,
    reduce: "str | Reduction | None" = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Keep:
    """Say what to record: `model.run(prompts, record=keep("resid_post.*", positions=-1, reduce="norm", device="cpu"))`.

    `reduce` is "mean" (over positions), "norm", `Project(directions)`, `TopK(k)` or any function of [..., d].
    """
    if isinstance(reduce, str) and reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: say 'mean', 'norm', Project(directions), TopK(k) or pass a function")
    how = REDUCTIONS[reduce] if isinstance(reduce, str) else reduce
    return Keep(tuple(sites) if isinstance(sites, (list, tuple)) else sites, positions, how, device, dtype)


class Tape:
    """Collects the chunks of one kept site over the forward passes of a run, and joins them."""

    def __init__(self, want: Keep, site: Site):
        self.want, self.site = want, site
        self.rewind()

    def rewind(self) -> None:
        """Forget what was written: a new sequence begins."""
        self.chunks: list[Any] = []
        self.kept: list[Tensor] = []  # columns of each chunk, where positions were chosen
        self.total: Tensor | None = None
        self.count: Tensor | None = None
        self.starts: set[int] = set()

    @property
    def axis(self) -> int:
        """The axis of positions, once the unit has been selected."""
        unit, axis = self.site.unit_axis, self.site.pos_axis
        return axis - 1 if self.site.unit is not None and unit is not None and unit < axis else axis

    @property
    def columns(self) -> Tensor | None:
        """Columns [prompt, n] of the positions kept, or None where all were."""
        return torch.cat(self.kept, dim=1) if self.kept else None

    def write(self, x: Tensor, frame: Frame) -> None:
        """Take in one forward pass's whole tensor [prompt, pos, ...] (or with queries at the position axis)."""
        self.starts.add(frame.start)
        if not frame.ordered:
            if self.want.positions is not None or isinstance(self.want.reduce, Mean):
                raise PositionError(
                    f"what {self.site} returns, {list(x.shape)}, is not by prompt and token: record it whole"
                )
            self.chunks.append(self.want.trim(x))
            return
        if self.site.kind in _SQUARE:
            x = _from_first_key(x, frame, _SQUARE[self.site.kind])
        if self.site.unit is not None and self.site.unit_axis is not None:
            x = x.select(self.site.unit_axis, self.site.unit)
        if isinstance(self.want.reduce, Mean):
            self._accumulate(x.movedim(self.axis, 1), frame)
            return
        columns = frame.columns(self.want.positions) if self.want.positions is not None else None
        if columns is not None:
            x = self._select(x.movedim(self.axis, 1), columns, frame).movedim(1, self.axis)
            if x.shape[self.axis] == 0:
                return
        self.chunks.append(self.want.trim(x))

    def _select(self, x: Tensor, columns: Tensor, frame: Frame) -> Tensor:
        frame = frame.seen(x.shape[1])
        rows, local, ordinals = frame.local(columns)
        counts = torch.bincount(rows, minlength=frame.batch)
        if bool((counts != counts[0]).any()):
            raise PositionError(
                f"positions={self.want.positions} select {counts.tolist()} tokens of the prompts: a recording keeps as "
                "many of each; use single positions, or record all of them and select with run.mask"
            )
        if len(rows) == 0:
            return x[:, :0]
        self.kept.append(columns[rows, ordinals].view(frame.batch, -1))
        return x[rows.to(x.device), local.to(x.device)].unflatten(0, (frame.batch, -1))

    def _accumulate(self, x: Tensor, frame: Frame) -> None:
        frame = frame.seen(x.shape[1])
        columns = frame.columns(self.want.positions)
        if columns is None:
            chosen = frame.real
        else:
            rows, local, _ = frame.local(columns)
            chosen = torch.zeros(frame.batch, frame.length, dtype=torch.bool)
            chosen[rows, local] = True
        chosen = chosen.to(x.device).reshape(*chosen.shape, *([1] * (x.ndim - 2)))
        total = x.to(torch.promote_types(x.dtype, torch.float32)).where(chosen, 0).sum(1)
        if self.total is not None and self.site.kind in _SQUARE:
            self.total = F.pad(self.total, (0, total.shape[-1] - self.total.shape[-1]))
        self.total = total if self.total is None else self.total + total
        self.count = chosen.sum(1) if self.count is None else self.count + chosen.sum(1)

    def done(self) -> Any:
        """The recorded tensor, or `TopKValues` of two."""
        if isinstance(self.want.reduce, Mean):
            assert self.total is not None and self.count is not None
            return (self.total / self.count).to(device=self.want.device, dtype=self.want.dtype)
        if not self.chunks:
            raise PositionError(f"no pass reached positions={self.want.positions} of {self.site}")
        if isinstance(self.chunks[0], TopKValues):
            return TopKValues(*(torch.cat(parts, dim=self.axis) for parts in zip(*self.chunks, strict=True)))
        if len(self.chunks) == 1:
            return self.chunks[0]
        chunks = self.chunks
        if self.site.kind in _SQUARE and self.want.reduce is None:  # a later query sees more keys
            widest = max(chunk.shape[-1] for chunk in chunks)
            chunks = [F.pad(c, (0, widest - c.shape[-1]), value=_SQUARE[self.site.kind]) for c in chunks]
        return torch.cat(chunks, dim=self.axis)


_SQUARE = {"pattern": 0.0, "scores": -torch.inf}
"""Kinds with keys, and what stands for a key that is not seen."""


def _from_first_key(x: Tensor, frame: Frame, fill: float) -> Tensor:
    """Keys from the first column on: the cache of a sliding window holds the last ones only."""
    return F.pad(x, (max(frame.start + frame.length - x.shape[-1], 0), 0), value=fill)


def as_keeps(record: Any, positions: Position = None) -> list[Keep]:
    """The `record=` argument in its forms: a pattern, a site, a `Keep`, or a list of them."""
    if record is None:
        return []
    if isinstance(record, Keep):
        return [record if positions is None or record.positions is not None else replace(record, positions=positions)]
    if isinstance(record, (str, Site)):
        return [Keep(record, positions)]
    if isinstance(record, (list, tuple, set, frozenset)):
        return [keep for item in record for keep in as_keeps(item, positions)]
    raise TypeError(f"record={record!r}: give a site such as 'resid_post.*', keep(...), or a list of them")
