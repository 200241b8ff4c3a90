"""What is kept of a forward pass: activations by site, at the positions and in the reduction that were asked for.

    run = model.run(prompts, record="resid_post.*")                       # everything, [prompt, pos, d_model]
    run = model.run(prompts, record=pc.keep("resid_post.*", positions=-1, device="cpu"))
    run = model.run(prompts, record=pc.keep("mlp_post.*", reduce=pc.TopK(32)))
    run["resid_post.3"], run["z.9.6"], run["resid_post.*"]                # the last: stacked, [layer, prompt, pos, ...]
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.positions import Frame, Position, PositionError
from patchclamp.sites import KINDS, Pattern, Site, SiteError, indices, parse


class Reduction(Protocol):
    """Makes an activation smaller as it is recorded, one position at a time."""

    def __call__(self, x: Tensor) -> Tensor: ...


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
        return x @ self.directions.to(x).reshape(-1, x.shape[-1]).T


class TopKValues(NamedTuple):
    """The largest entries of the last dimension and where they are."""

    values: Float[Tensor, "*any k"]
    indices: Int[Tensor, "*any k"]


@dataclass(frozen=True)
class TopK:
    """The k largest entries of the last dimension; the recording holds `TopKValues(values, indices)`."""

    k: int

    def __call__(self, x: Tensor) -> Tensor:
        values, where = x.topk(self.k, dim=-1)
        return torch.stack([values.float(), where.float()])  # unpacked by Recording; indices below 2**24 are exact


@dataclass(frozen=True)
class Mean:
    """The mean over each prompt's real positions: [prompt, pos, ...] to [prompt, ...]."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


REDUCTIONS = {"norm": Norm(), "mean": Mean()}


@dataclass(frozen=True, eq=False)
class Keep:
    """What to record of some sites: positions, a reduction, where to put it and in which dtype."""

    sites: "str | Site | tuple[str | Site, ...]"
    positions: Position = None
    reduce: Reduction | None = None
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None

    @property
    def patterns(self) -> tuple["str | Site", ...]:
        return self.sites if isinstance(self.sites, tuple) else (self.sites,)

    def trim(self, x: Tensor) -> Tensor:
        """The tensor to hold on to: reduced, moved, and not a small view that keeps a large tensor alive."""
        if self.reduce is not None:
            x = self.reduce(x)
        if self.device is not None or self.dtype is not None:
            x = x.to(device=self.device, dtype=self.dtype if x.is_floating_point() else None)
        if x._base is not None and 2 * x.numel() < x._base.numel():
            x = x.clone()
        return x


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
    if isinstance(reduce, str):
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce={reduce!r}: say 'mean', 'norm', Project(directions), TopK(k) or pass a function")
        reduce = REDUCTIONS[reduce]
    return Keep(tuple(sites) if isinstance(sites, (list, tuple)) else sites, positions, reduce, device, dtype)


class Recording(Mapping[Site, Any]):
    """Activations by site. Index it by a site's name; a head of a whole site is a slice of it.

    `frame` knows the padding; `columns` [prompt, n] says which positions were kept, None for all.
    """

    def __init__(self, tensors: dict[Site, Tensor], frame: Frame, columns: Tensor | None = None, reduced: bool = False):
        self.tensors, self.frame, self.columns, self.reduced = tensors, frame, columns, reduced

    def __getitem__(self, key: "str | Site") -> Any:
        if isinstance(key, Site):
            return self._one(key)
        parsed = parse(key)
        if parsed.path:
            return self._one(Site("module", path=parsed.path))
        chosen = self._match(parsed)
        if len(chosen) == 1 and not _plural(parsed):
            return self._one(chosen[0])
        return torch.stack([self._one(site) for site in chosen])

    def _match(self, parsed: Pattern) -> list[Site]:
        kind = next((k for k in parsed.kinds if any(s.kind == k for s in self.tensors)), parsed.kinds[0])
        if parsed.layer is None:
            layers: list[int | None] = [None]
        elif parsed.layer.lstrip("-").isdigit() and int(parsed.layer) >= 0:
            layers = [int(parsed.layer)]
        else:
            here = [s.layer for s in self.tensors if s.kind == kind and s.stack == parsed.stack and s.layer is not None]
            if not here:
                raise KeyError(self._missing(parsed.text))
            seen = set(here)
            layers = [i for i in indices(parsed.layer, max(here) + 1, what="layer", within=parsed.text) if i in seen]
        units: list[int | None] = [None]
        if parsed.unit is not None:
            if parsed.unit.isdigit():
                units = [int(parsed.unit)]
            else:
                whole = self.tensors.get(Site(kind, layers[0], stack=parsed.stack))
                axis = Site(kind, layers[0]).unit_axis
                own = [s.unit for s in self.tensors if s.kind == kind and s.layer == layers[0] and s.unit is not None]
                size = whole.shape[axis] if whole is not None and axis is not None else max(own, default=-1) + 1
                units = list(indices(parsed.unit, size, what=KINDS[kind].unit or "unit", within=parsed.text))
        return [Site(kind, layer, unit, parsed.stack) for layer in layers for unit in units]

    def _one(self, site: Site) -> Any:
        if site in self.tensors:
            return self.tensors[site]
        whole, axis = self.tensors.get(site.whole), site.unit_axis
        if site.unit is None or whole is None or axis is None or self.reduced:
            raise KeyError(self._missing(str(site)))
        if not -whole.shape[axis] <= site.unit < whole.shape[axis]:
            raise SiteError(f"{site}: there are {whole.shape[axis]} {KINDS[site.kind].unit}s")
        return whole.select(axis, site.unit)

    def _missing(self, wanted: str) -> str:
        names = [str(site) for site in self.tensors]
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return f"{wanted} was not recorded; this run recorded {listed or 'nothing (record= says what to record)'}"

    def __iter__(self) -> Iterator[Site]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except (KeyError, SiteError):
            return False
        return True

    def __repr__(self) -> str:
        lines = [f"  {site}: {list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for site, t in self.tensors.items() if isinstance(t, Tensor)]
        return "Recording(\n" + "\n".join(lines) + "\n)"

    @property
    def sites(self) -> list[Site]:
        return list(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for v in self.tensors.values() for t in (v if isinstance(v, tuple) else (v,)))

    def map(self, fn) -> "Recording":
        """A recording of `fn(tensor)` for each tensor; shapes must stay."""
        return Recording({site: fn(t) for site, t in self.tensors.items()}, self.frame, self.columns, self.reduced)

    def detach(self) -> "Recording":
        return self.map(lambda t: t.detach() if isinstance(t, Tensor) else t)

    def to(self, device: str | torch.device) -> "Recording":
        return self.map(lambda t: t.to(device))

    def mean(self, site: "str | Site") -> Float[Tensor, "*feature"]:
        """The mean of a site over all real positions of all prompts, [...]: what mean ablation puts in its place."""
        key = Site(**vars(site)) if isinstance(site, Site) else self._match(parse(site))[0]
        x = self._one(key)
        axis = key.pos_axis
        if axis != 1:
            raise SiteError(f"{key} has queries and keys: a mean over positions has no shape that could be put back")
        if self.columns is not None:
            real = self.columns >= 0
        else:
            real = self.frame.mask
        return x[real.to(x.device)].mean(0)

    def to_xarray(self, site: "str | Site"):
        """The activation with named dimensions, as an `xarray.DataArray`."""
        import xarray as xr

        key = site if isinstance(site, Site) else self._match(parse(site))[0]
        x = self._one(key)
        return xr.DataArray(x.detach().float().cpu().numpy(), dims=key.dims[: x.ndim], name=str(key))

    def pack(self, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Put the tensors into `tensors` under `prefix` and return what else is needed, as JSON."""
        for site, tensor in self.tensors.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{site} was reduced to {type(tensor).__name__}, which is not saved")
            tensors[f"{prefix}:{site}"] = tensor.detach()
        tensors[f"{prefix}/left"], tensors[f"{prefix}/count"] = self.frame.left, self.frame.count
        if self.columns is not None:
            tensors[f"{prefix}/columns"] = self.columns
        sites = [{**vars(site)} for site in self.tensors]
        return {"prefix": prefix, "sites": sites, "prompt": self.frame.prompt, "length": self.frame.length}

    @classmethod
    def unpack(cls, packed: dict[str, Any], tensors: Mapping[str, Tensor]) -> "Recording":
        prefix = packed["prefix"]
        sites = [Site(**row) for row in packed["sites"]]
        frame = Frame(0, packed["length"], packed["prompt"], tensors[f"{prefix}/left"], tensors[f"{prefix}/count"])
        return cls({s: tensors[f"{prefix}:{s}"] for s in sites}, frame, tensors.get(f"{prefix}/columns"))

    def save(self, folder: str | Path) -> None:
        """Write `recording.safetensors` and `recording.json` to `folder`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        packed = self.pack("recording", tensors)
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, folder / "recording.safetensors")
        (folder / "recording.json").write_text(json.dumps(packed, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> "Recording":
        """The recording that `save` wrote to `folder`."""
        from safetensors.torch import load_file

        folder = Path(folder)
        return cls.unpack(json.loads((folder / "recording.json").read_text()), load_file(folder / "recording.safetensors"))


def _plural(parsed: Pattern) -> bool:
    return any(part is not None and not part.lstrip("-").isdigit() for part in (parsed.layer, parsed.unit))


class Tape:
    """Collects the chunks of one kept site over the forward passes of a run, and joins them."""

    def __init__(self, want: Keep, site: Site):
        self.want, self.site = want, site
        self.chunks: list[Tensor] = []
        self.kept: list[Tensor] = []  # columns of each chunk, where positions were chosen
        self.total: Tensor | None = None
        self.count: Tensor | None = None
        self.starts: set[int] = set()

    def write(self, x: Tensor, frame: Frame) -> None:
        """Take in one forward pass's whole tensor [prompt, pos, ...] (or with queries at the position axis)."""
        if frame.start in self.starts:
            return  # recomputed under gradient checkpointing: the first is the one
        self.starts.add(frame.start)
        axis = self.site.pos_axis
        if self.site.unit is not None and self.site.unit_axis is not None:
            x = x.select(self.site.unit_axis, self.site.unit)
            axis = axis - 1 if self.site.unit_axis < axis else axis
        if isinstance(self.want.reduce, Mean):
            self._accumulate(x.movedim(axis, 1), frame)
            return
        columns = frame.columns(self.want.positions) if self.want.positions is not None else None
        if columns is not None:
            x = self._select(x.movedim(axis, 1), columns, frame).movedim(1, axis)
            if x.shape[axis] == 0:
                return
        self.chunks.append(self.want.trim(x))

    def _select(self, x: Tensor, columns: Tensor, frame: Frame) -> Tensor:
        frame = frame.seen(x.shape[1])
        rows, local, ordinals = frame.local(columns)
        counts = torch.bincount(rows, minlength=frame.batch)
        if frame.start == 0 and frame.length >= frame.prompt and bool((counts != counts[0]).any()):
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
            place = torch.arange(frame.start, frame.start + frame.length)
            ends = torch.where(frame.left + frame.count < frame.prompt, frame.left + frame.count, frame.prompt + frame.reach)
            chosen = (place >= frame.left[:, None]) & (place < ends[:, None])
        else:
            rows, local, _ = frame.local(columns)
            chosen = torch.zeros(frame.batch, frame.length, dtype=torch.bool)
            chosen[rows, local] = True
        weight = chosen.to(x.device).reshape(*chosen.shape, *([1] * (x.ndim - 2)))
        total = (x.float() * weight).sum(1)
        count = weight.sum(1)
        self.total = total if self.total is None else self.total + total
        self.count = count if self.count is None else self.count + count

    def done(self) -> Any:
        if isinstance(self.want.reduce, Mean):
            assert self.total is not None and self.count is not None
            mean = self.total / self.count
            return mean.to(device=self.want.device, dtype=self.want.dtype)
        axis = self.site.pos_axis
        if self.site.unit is not None and self.site.unit_axis is not None and self.site.unit_axis < axis:
            axis -= 1
        stacked = isinstance(self.want.reduce, TopK)
        chunks = self.chunks
        if len(chunks) > 1 and self.site.kind.endswith(("scores", "pattern")):
            widest = max(c.shape[-1] for c in chunks)
            fill = 0.0 if self.site.kind.endswith("pattern") else -torch.inf
            chunks = [torch.nn.functional.pad(c, (0, widest - c.shape[-1]), value=fill) for c in chunks]
        x = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=axis + stacked)
        return TopKValues(x[0], x[1].long()) if stacked else x


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
