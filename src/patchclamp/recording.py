"""What is kept of a forward pass: activations by site, at the positions and in the reduction that were asked for.

run = model.run(prompts, record="resid_post.*")                       # everything, [prompt, pos, d_model]
run = model.run(prompts, record=pc.keep("resid_post.*", positions=-1, device="cpu"))
run = model.run(prompts, record=pc.keep("mlp_post.*", reduce=pc.TopK(32)))
run["resid_post.3"], run["z.9.6"], run["resid_post.*"]                # the last: stacked, [layer, prompt, pos, ...]
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.positions import Frame
from patchclamp.sites import KINDS, Pattern, Site, SiteError, indices, parse
from patchclamp.tape import Keep, Norm, Project, TopK, TopKValues, keep


class Recording(Mapping[Site, Any]):
    """Activations by site. Index it by a site's name; a head of a whole site is a slice of it.

    `frame` knows the padding, `frames` that of other stacks; `columns` says, for a site of which some positions were
    kept, which: [prompt, n]. `reduced` are the sites that hold a reduction; `layers` is how many each stack has.
    """

    def __init__(
        self,
        tensors: Mapping[Site, Any],
        frame: Frame,
        *,
        columns: Mapping[Site, Tensor] | None = None,
        reduced: frozenset[Site] = frozenset(),
        frames: Mapping[str, Frame] | None = None,
        layers: Mapping[str, int] | None = None,
    ):
        self.tensors, self.frame, self.reduced = dict(tensors), frame, reduced
        self.columns, self.frames, self.layers = dict(columns or {}), dict(frames or {}), dict(layers or {})

    def __getitem__(self, key: "str | Site") -> Any:
        if isinstance(key, Site):
            return self._one(key)
        parsed = parse(key)
        chosen = self._match(parsed)
        if len(chosen) == 1 and not _plural(parsed):
            return self._one(chosen[0])
        return torch.stack([self._one(site) for site in chosen])

    def _match(self, parsed: Pattern) -> list[Site]:
        if parsed.kinds == ("module",):
            return [Site("module", path=parsed.path)]
        kind = next((k for k in parsed.kinds if any(s.kind == k for s in self.tensors)), parsed.kinds[0])
        if parsed.layer is None:
            layers: list[int | None] = [None]
        elif parsed.layer.lstrip("-").isdigit() and int(parsed.layer) >= 0:
            layers = [int(parsed.layer)]
        else:
            here = {s.layer for s in self.tensors if s.kind == kind and s.stack == parsed.stack and s.layer is not None}
            if not here:
                raise KeyError(self._missing(parsed.text))
            size = self.layers.get(parsed.stack, max(here) + 1)
            wanted = indices(parsed.layer, size, what="layer", within=parsed.text)
            layers = [i for i in wanted if i in here] if parsed.layer == "*" else list(wanted)
        units: list[int | None] = [None]
        if parsed.unit is not None:
            if parsed.unit.isdigit():
                units = [int(parsed.unit)]
            else:
                whole = self.tensors.get(Site(kind, layers[0], stack=parsed.stack))
                axis = Site(kind, layers[0]).unit_axis
                own = sorted(
                    s.unit
                    for s in self.tensors
                    if s.whole == Site(kind, layers[0], stack=parsed.stack) and s.unit is not None
                )
                if whole is not None and axis is not None:
                    units = list(
                        indices(parsed.unit, whole.shape[axis], what=KINDS[kind].unit or "unit", within=parsed.text)
                    )
                elif parsed.unit == "*" and own:
                    units = list(own)
                else:
                    raise KeyError(self._missing(parsed.text))
        return [Site(kind, layer, unit, parsed.stack) for layer in layers for unit in units]

    def _one(self, site: Site) -> Any:
        if site in self.tensors:
            return self.tensors[site]
        whole, axis = self.tensors.get(site.whole), site.unit_axis
        if site.unit is None or whole is None or axis is None or site.whole in self.reduced:
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
        lines = [
            f"  {site}: {list(t.shape)} {str(t.dtype).removeprefix('torch.')}"
            for site, t in self.tensors.items()
            if isinstance(t, Tensor)
        ]
        return "Recording(\n" + "\n".join(lines) + "\n)"

    @property
    def sites(self) -> list[Site]:
        return list(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(
            t.numel() * t.element_size() for v in self.tensors.values() for t in (v if isinstance(v, tuple) else (v,))
        )

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Recording":
        """A recording of `fn(tensor)` for each tensor; shapes must stay."""
        tensors = {
            site: TopKValues(*map(fn, t)) if isinstance(t, TopKValues) else fn(t) for site, t in self.tensors.items()
        }
        return Recording(
            tensors, self.frame, columns=self.columns, reduced=self.reduced, frames=self.frames, layers=self.layers
        )

    def detach(self) -> "Recording":
        return self.map(Tensor.detach)

    def to(self, device: str | torch.device) -> "Recording":
        return self.map(lambda t: t.to(device))

    def frame_of(self, site: Site) -> Frame:
        """The frame of the stack that a site belongs to, over all the positions that were recorded."""
        return self.frames.get(site.source, self.frame)

    def mean(self, site: "str | Site") -> Float[Tensor, "*feature"]:
        """The mean of a site over all real positions of all prompts, [...]: what mean ablation puts in its place."""
        key = self.one(site)
        if key.pos_axis != 1:
            raise SiteError(f"{key} has queries and keys: a mean over positions has no shape that could be put back")
        if key.whole in self.reduced:
            raise SiteError(f"{key} was recorded as a reduction; a mean over positions is keep(..., reduce='mean')")
        x = self._one(key)
        columns = self.columns.get(key, self.columns.get(key.whole))
        real = self.frame_of(key).seen(x.shape[1]).real if columns is None else columns >= 0
        return x[real.to(x.device)].mean(0)

    def one(self, site: "str | Site") -> Site:
        """The one site that a name names."""
        if isinstance(site, Site):
            return site
        found = self._match(parse(site))
        if len(found) != 1:
            raise SiteError(f"{site!r} names {len(found)} sites of this recording, and one is needed")
        return found[0]

    def to_xarray(self, site: "str | Site"):
        """The activation with named dimensions, as an `xarray.DataArray`."""
        import xarray as xr

        key = self.one(site)
        x = self._one(key)
        return xr.DataArray(x.detach().float().cpu().numpy(), dims=key.dims[: x.ndim], name=str(key))

    def pack(self, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Put the tensors into `tensors` under `prefix` and return what else is needed, as JSON."""
        for site, tensor in self.tensors.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{site} was reduced to {type(tensor).__name__}, which is not saved")
            tensors[f"{prefix}:{site}"] = tensor.detach()
        frames = {"": self.frame, **self.frames}
        for site, columns in self.columns.items():
            tensors[f"{prefix}/columns:{site}"] = columns
        for stack, frame in frames.items():
            tensors[f"{prefix}/left:{stack}"], tensors[f"{prefix}/count:{stack}"] = frame.left, frame.count
        return {
            "prefix": prefix,
            "sites": [vars(site) for site in self.tensors],
            "reduced": [vars(site) for site in self.reduced],
            "layers": self.layers,
            "frames": {
                stack: {
                    "length": f.length,
                    "prompt": f.prompt,
                    "reach": f.reach,
                    "texts": f.texts,
                    "offsets": f.offsets,
                }
                for stack, f in frames.items()
            },
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any], tensors: Mapping[str, Tensor]) -> "Recording":
        """What `pack` packed."""
        prefix = packed["prefix"]
        sites = [Site(**row) for row in packed["sites"]]
        frames = {
            stack: Frame(
                0,
                row["length"],
                row["prompt"],
                tensors[f"{prefix}/left:{stack}"],
                tensors[f"{prefix}/count:{stack}"],
                row["texts"] and tuple(row["texts"]),
                row["offsets"] and tuple(tuple(tuple(pair) for pair in offsets) for offsets in row["offsets"]),
                row["reach"],
            )
            for stack, row in packed["frames"].items()
        }
        columns = {s: tensors[f"{prefix}/columns:{s}"] for s in sites if f"{prefix}/columns:{s}" in tensors}
        reduced = frozenset(Site(**row) for row in packed["reduced"])
        own = {site: tensors[f"{prefix}:{site}"] for site in sites}
        frame = frames.pop("")
        return cls(own, frame, columns=columns, reduced=reduced, frames=frames, layers=packed["layers"])

    def save(self, folder: str | Path) -> None:
        """Write `recording.safetensors` and `recording.json` to `folder`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        packed = self.pack("recording", tensors)
        save_file(
            {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, folder / "recording.safetensors"
        )
        (folder / "recording.json").write_text(json.dumps(packed, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> "Recording":
        """The recording that `save` wrote to `folder`."""
        from safetensors.torch import load_file

        folder = Path(folder)
        return cls.unpack(
            json.loads((folder / "recording.json").read_text()), load_file(folder / "recording.safetensors")
        )


def _plural(parsed: Pattern) -> bool:
    return any(part is not None and not part.lstrip("-").isdigit() for part in (parsed.layer, parsed.unit))


__all__ = ["Keep", "Norm", "Project", "Recording", "TopK", "TopKValues", "keep"]
