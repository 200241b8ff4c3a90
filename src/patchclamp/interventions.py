"""What is done to an activation, as plain data: `patch`, `ablate`, `add`, `scale`, `project_out`, `clamp`, `edit`.

    do=[pc.patch("z.9.6", corrupted_run, pos=-1), pc.add("resid_post.6", direction, scale=4, when="generated")]

The same list means the same in `model.run`, in `model.generate` and in `model.under`. Interventions on one site apply
in the order of the list; each sees what the one before it left. `save` and `load` keep them as JSON + safetensors.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from patchclamp.positions import Frame, Position, PositionError, Span
from patchclamp.recording import Recording
from patchclamp.selection import InterventionError, Selection
from patchclamp.sites import Site, SiteError, parse

When = Literal["all", "prompt", "generated"]


@dataclass(frozen=True, eq=False)
class Intervention:
    """One thing done at one site (or at every site of a pattern); made by the functions of this file."""

    op: str
    site: str
    pos: Position = None
    rows: tuple[int, ...] | None = None
    when: When = "all"
    amount: float = 1.0
    to: str = ""
    seed: int = 0
    value: Tensor | None = None
    direction: Tensor | None = None
    source: Recording | None = None
    fn: Callable[..., Tensor] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        parts = [repr(self.site)]
        parts += [f"pos={self.pos}"] if self.pos is not None else []
        parts += [f"when={self.when!r}"] if self.when != "all" else []
        return f"{self.op}({', '.join(parts)})"

    def apply(self, x: Tensor, site: Site, frame: Frame) -> Tensor:
        """`x`, the site's whole tensor in one forward pass, with this done to it; a new tensor, of x's dtype."""
        y = x.movedim(site.pos_axis, 1) if frame.ordered else x.unsqueeze(1)
        frame = self._fitted(frame, y, site)
        columns = frame.columns(self.pos)
        columns = frame.everything if columns is None else columns
        found = frame.local(columns, self.when)
        chosen = found if self.rows is None else tuple(t[torch.isin(found[0], torch.tensor(self.rows))] for t in found)
        rows, local, ordinals = chosen
        if len(rows) == 0:
            return x
        selection = Selection(y, site, frame, repr(self), self.pos, columns, rows, local, ordinals)
        at = rows.to(y.device), local.to(y.device)
        if self.fn is not None:
            new = selection.edited(self.fn).to(device=y.device, dtype=y.dtype)
            if site.unit is None and len(rows) == len(y) * y.shape[1]:
                return self._back(new, site, frame)
            new = new[at]
        else:
            new = self._values(selection.whole[at], selection, found).to(device=y.device, dtype=y.dtype)
        out = y.clone()
        out[at if site.unit is None else (*at, site.unit)] = new
        return self._back(out, site, frame)

    def _back(self, y: Tensor, site: Site, frame: Frame) -> Tensor:
        return y.movedim(1, site.pos_axis) if frame.ordered else y.squeeze(1)

    def _fitted(self, frame: Frame, y: Tensor, site: Site) -> Frame:
        """The frame of `y`, once `pos`, `when` and `rows` are known to mean something there."""
        if not frame.ordered:
            if self.pos is not None or self.when != "all" or (self.rows is not None and len(y) != frame.batch):
                raise InterventionError(
                    f"{self}: what {site} returns, {[len(y), *y.shape[2:]]}, is not by prompt and token"
                )
            frame = replace(Frame.plain(len(y), 1), ordered=False)
        bad = [row for row in self.rows or () if not 0 <= row < frame.batch]
        if bad:
            raise InterventionError(f"{self}: rows={bad} of {frame.batch} prompts, which are 0 to {frame.batch - 1}")
        return frame.seen(y.shape[1])

    def _values(self, x: Tensor, selection: Selection, found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """New values for the selected entries `x` [selected, ...]."""
        match self.op:
            case "add":
                assert self.value is not None
                return x + self.amount * selection.fit(self.value).to(device=x.device, dtype=x.dtype)
            case "scale":
                return x * self.amount
            case "patch" | "ablate" | "clamp" if self.value is not None:
                return selection.fit(self.value).expand(x.shape)
            case "patch":
                assert self.source is not None
                return selection.recorded(self.source)
            case "ablate":
                return self._ablated(x, selection, found)
            case "project_out":
                return self._without(x)
            case "clamp":
                return self._held(x)
        raise InterventionError(f"no intervention is called {self.op!r}")

    def _ablated(self, x: Tensor, selection: Selection, found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        if self.to == "zero":
            return torch.zeros_like(x)
        if selection.frame.batch < 2:
            raise InterventionError(
                f"{self}: to={self.to!r} takes values from the other prompts of the batch, and there is one prompt; "
                "pass a tensor instead, such as run.recording.mean(site)"
            )
        return selection.mean(*found) if self.to == "mean" else selection.resampled(*found, self.seed)

    def _directions(self, x: Tensor) -> Tensor:
        """[n, feature], in at least single precision."""
        assert self.direction is not None
        if self.direction.ndim not in (1, 2) or self.direction.shape[-1] != x.shape[-1]:
            raise InterventionError(f"{self} has directions {list(self.direction.shape)} for {x.shape[-1]} features")
        exact = torch.promote_types(x.dtype, torch.float32)
        return self.direction.reshape(-1, x.shape[-1]).to(device=x.device, dtype=exact)

    def _without(self, x: Tensor) -> Tensor:
        directions = self._directions(x)
        _, sizes, rows = torch.linalg.svd(directions, full_matrices=False)
        basis = rows[sizes > sizes.max() * 1e-6]  # of dependent directions, what they span
        if len(basis) == 0:
            raise InterventionError(f"{self}: a direction of zeros points nowhere")
        exact = x.to(basis.dtype)
        return exact - exact @ basis.T @ basis

    def _held(self, x: Tensor) -> Tensor:
        if self.direction is None:
            return torch.full_like(x, self.amount)
        direction = self._directions(x)
        if len(direction) != 1 or not bool(direction.any()):
            raise InterventionError(f"{self} holds the component along one direction, which is not zero")
        unit = direction[0] / direction[0].norm()
        exact = x.to(unit.dtype)
        return exact + (self.amount - exact @ unit)[..., None] * unit


def _make(
    op: str, site: "str | Site", pos: Position, rows: Sequence[int] | None, when: When, **rest: Any
) -> Intervention:
    if when not in ("all", "prompt", "generated"):
        raise InterventionError(f"when={when!r}: it is 'all', 'prompt' or 'generated'")
    parse(str(site))
    return Intervention(op, str(site), pos, None if rows is None else tuple(rows), when, **rest)


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.as_tensor(value, dtype=torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError):
        raise InterventionError(f"{name} must be a tensor or numbers, not {type(value).__name__}") from None


def patch(
    site: "str | Site", source: Any, pos: Position = None, *, rows: Sequence[int] | None = None, when: When = "all"
) -> Intervention:
    """Put in what another run had there: `source` is a Run, a Recording or a tensor of the site's shape."""
    recording = getattr(source, "recording", source)
    if isinstance(recording, Recording):
        return _make("patch", site, pos, rows, when, source=recording)
    return _make("patch", site, pos, rows, when, value=_tensor(recording, "source"))


def ablate(
    site: "str | Site",
    to: "str | Tensor" = "zero",
    pos: Position = None,
    *,
    rows: Sequence[int] | None = None,
    when: When = "all",
    seed: int = 0,
) -> Intervention:
    """Remove: to "zero", to the "mean" over the batch's prompts, to another prompt's ("resample"), or to a tensor.

    Prompts are compared at the positions that `pos` names, or else at equal distance from their first tokens.
    """
    if isinstance(to, str):
        if to not in ("zero", "mean", "resample"):
            raise InterventionError(f"to={to!r}: ablation goes to 'zero', 'mean', 'resample' or a tensor")
        return _make("ablate", site, pos, rows, when, to=to, seed=seed)
    return _make("ablate", site, pos, rows, when, value=_tensor(to, "to"))


def add(
    site: "str | Site",
    vector: Any,
    scale: float = 1.0,
    pos: Position = None,
    *,
    rows: Sequence[int] | None = None,
    when: When = "all",
) -> Intervention:
    """Add `scale * vector`: [feature] everywhere, [prompt, feature] one a row, [prompt, n, feature] one a position."""
    return _make("add", site, pos, rows, when, value=_tensor(vector, "vector"), amount=float(scale))


def scale(
    site: "str | Site", factor: float, pos: Position = None, *, rows: Sequence[int] | None = None, when: When = "all"
) -> Intervention:
    """Multiply by `factor`."""
    return _make("scale", site, pos, rows, when, amount=float(factor))


def project_out(
    site: "str | Site", directions: Any, pos: Position = None, *, rows: Sequence[int] | None = None, when: When = "all"
) -> Intervention:
    """Remove the components along `directions` ([feature] or [n, feature]; they need not be orthogonal)."""
    return _make("project_out", site, pos, rows, when, direction=_tensor(directions, "directions"))


def clamp(
    site: "str | Site",
    value: Any,
    pos: Position = None,
    *,
    direction: Any = None,
    rows: Sequence[int] | None = None,
    when: When = "all",
) -> Intervention:
    """Hold at `value`: the whole activation, or its component along `direction` (in units of the activation)."""
    if direction is not None:
        return _make("clamp", site, pos, rows, when, amount=float(value), direction=_tensor(direction, "direction"))
    held = _tensor(value, "value")
    if held.numel() == 1:
        return _make("clamp", site, pos, rows, when, amount=float(held))
    return _make("clamp", site, pos, rows, when, value=held)


def edit(
    site: "str | Site",
    fn: Callable[..., Tensor],
    pos: Position = None,
    *,
    rows: Sequence[int] | None = None,
    when: When = "all",
) -> Intervention:
    """Any function `fn(activation, **context) -> activation`, on the site's tensor as recorded; not saved to disk.

    `context` has `site`, `frame` (padding and lengths) and `start` (the first position of this forward pass).
    """
    if not callable(fn):
        raise InterventionError(f"edit takes a function, not {type(fn).__name__}")
    return _make("edit", site, pos, rows, when, fn=fn)


def save(interventions: Sequence[Intervention], folder: str | Path) -> None:
    """Write `interventions.json` and `interventions.safetensors`; an `edit`, which is code, is refused."""
    from safetensors.torch import save_file

    folder = Path(folder)
    rows, tensors = [], {}
    sources: dict[int, dict[str, Any]] = {}
    for index, item in enumerate(interventions):
        if item.op == "edit":
            raise InterventionError(f"{item} holds a Python function and cannot be saved; the other kinds can")
        row: dict[str, Any] = {"op": item.op, "site": item.site, "rows": item.rows, "when": item.when}
        row |= {"amount": item.amount, "to": item.to, "seed": item.seed, "pos": _pos_to_json(item.pos, index, tensors)}
        for name in ("value", "direction"):
            tensor = getattr(item, name)
            if tensor is not None:
                tensors[f"{index}.{name}"] = tensor.contiguous()
        if item.source is not None:
            if id(item.source) not in sources:
                sources[id(item.source)] = item.source.pack(f"{index}.source", tensors)
            row["source"] = sources[id(item.source)]
        rows.append(row)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: t.detach().cpu().clone() for key, t in tensors.items()}, folder / "interventions.safetensors")
    (folder / "interventions.json").write_text(json.dumps({"schema": 1, "interventions": rows}, indent=1))


def load(folder: str | Path) -> list[Intervention]:
    """The interventions that `save` wrote to `folder`."""
    from safetensors.torch import load_file

    folder = Path(folder)
    tensors = load_file(folder / "interventions.safetensors")
    found = []
    for index, row in enumerate(json.loads((folder / "interventions.json").read_text())["interventions"]):
        source = Recording.unpack(row["source"], tensors) if "source" in row else None
        found.append(
            Intervention(
                row["op"],
                row["site"],
                _pos_from_json(row["pos"], tensors),
                None if row["rows"] is None else tuple(row["rows"]),
                row["when"],
                row["amount"],
                row["to"],
                row["seed"],
                tensors.get(f"{index}.value"),
                tensors.get(f"{index}.direction"),
                source,
            )
        )
    return found


def _pos_to_json(pos: Position, index: int, tensors: dict[str, Tensor]) -> Any:
    if isinstance(pos, Tensor):
        tensors[f"{index}.pos"] = pos
        return {"tensor": f"{index}.pos"}
    if isinstance(pos, slice):
        return {"slice": [pos.start, pos.stop, pos.step]}
    if isinstance(pos, Span):
        return {"span": pos.text, "which": pos.which}
    return list(pos) if isinstance(pos, (list, tuple)) else pos


def _pos_from_json(pos: Any, tensors: dict[str, Tensor]) -> Position:
    if not isinstance(pos, dict):
        return pos
    if "tensor" in pos:
        return tensors[pos["tensor"]]
    if "slice" in pos:
        return slice(*pos["slice"])
    text = pos["span"]
    return Span(text if isinstance(text, str) else tuple(text), pos["which"])


__all__ = [
    "Intervention",
    "InterventionError",
    "PositionError",
    "SiteError",
    "ablate",
    "add",
    "clamp",
    "edit",
    "load",
    "patch",
    "project_out",
    "save",
    "scale",
]
