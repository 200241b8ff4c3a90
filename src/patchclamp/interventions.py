"""What is done to an activation, as plain data: `patch`, `ablate`, `add`, `scale`, `project_out`, `clamp`, `edit`.

    do=[pc.patch("z.9.6", corrupted_run, pos=-1), pc.add("resid_post.6", direction, scale=4, when="generated")]

The same list means the same in `model.run`, in `model.generate` and in `model.under`. Interventions on one site apply
in the order of the list; each sees what the one before it left. `save` and `load` keep them as JSON + safetensors.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from patchclamp.positions import Frame, Position, PositionError, Span
from patchclamp.recording import Recording
from patchclamp.sites import Site, SiteError

When = Literal["all", "prompt", "generated"]


class InterventionError(ValueError):
    """An intervention that cannot be carried out as it is written."""


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
        y = x.movedim(site.pos_axis, 1) if site.pos_axis != 1 and x.ndim > 2 else x
        frame = frame.seen(y.shape[1]) if y.ndim > 1 else frame
        columns = frame.columns(self.pos)
        if columns is None:
            columns = torch.arange(frame.start, frame.start + frame.length).expand(len(y), -1)
        rows, local, ordinals = frame.local(columns, self.when)
        if self.rows is not None:
            chosen = torch.isin(rows, torch.tensor(self.rows))
            rows, local, ordinals = rows[chosen], local[chosen], ordinals[chosen]
        if len(rows) == 0:
            return x
        unit = () if site.unit is None else (site.unit,)
        at = (rows.to(y.device), local.to(y.device), *unit)
        picked = _Picked(y, site, frame, columns, rows, local, ordinals)
        new = self._values(y[at], picked)
        out = y.clone()
        out[at] = new.to(device=y.device, dtype=y.dtype)
        return out.movedim(1, site.pos_axis) if y is not x else out

    def _values(self, x: Tensor, picked: "_Picked") -> Tensor:
        """New values for the selected entries `x` [selected, ...]."""
        match self.op:
            case "add":
                return x + self.amount * picked.fit(self.value, self).to(device=x.device, dtype=x.dtype)
            case "scale":
                return x * self.amount
            case "patch":
                return picked.fit(self.value, self) if self.source is None else picked.recorded(self)
            case "ablate":
                return self._ablated(x, picked)
            case "project_out" | "clamp":
                return self._along(x)
            case "edit":
                return picked.edited(self)
        raise InterventionError(f"no intervention is called {self.op!r}")

    def _ablated(self, x: Tensor, picked: "_Picked") -> Tensor:
        if self.value is not None:
            return picked.fit(self.value, self).expand(x.shape)
        if self.to == "zero":
            return torch.zeros_like(x)
        y = picked.whole()
        if len(y) < 2:
            raise InterventionError(
                f"{self}: to={self.to!r} takes values from the other prompts of the batch, and there is one prompt; "
                "pass a tensor instead, such as run.recording.mean(site)"
            )
        if self.to == "mean":
            return y.mean(0, keepdim=True).expand_as(y)[picked.rows.to(y.device), picked.local.to(y.device)]
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(y), generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # every prompt takes from another one
        return y[other[picked.rows].to(y.device), picked.local.to(y.device)]

    def _along(self, x: Tensor) -> Tensor:
        if self.direction is None:
            return torch.full_like(x, self.amount) if self.value is None else self.value.to(x).expand(x.shape)
        basis = torch.linalg.qr(self.direction.reshape(-1, x.shape[-1]).float().T).Q.to(x)
        along = x @ basis
        if self.op == "project_out":
            return x - along @ basis.T
        unit = self.direction.to(x) / self.direction.norm().to(x)
        return x + (self.amount - x @ unit)[..., None] * unit


@dataclass
class _Picked:
    """The entries that an intervention selects, and how values from elsewhere line up with them."""

    y: Tensor  # [prompt, pos, (unit), ...]
    site: Site
    frame: Frame
    columns: Tensor
    rows: Tensor
    local: Tensor
    ordinals: Tensor

    def whole(self) -> Tensor:
        return self.y if self.site.unit is None else self.y[:, :, self.site.unit]

    def fit(self, value: Tensor | None, of: Intervention) -> Tensor:
        """A value by what its shape says: [feature], [prompt, feature], [prompt, n, feature] or [prompt, pos, feature]."""
        assert value is not None
        like = self.whole()
        tail = list(like.shape[2:])
        value = value.to(like.device)
        if value.numel() == 1 or list(value.shape) == tail:
            return value.reshape(tail) if value.numel() > 1 else value.reshape(())
        body = list(value.shape[-len(tail) :]) if tail else []
        lead = list(value.shape[: value.ndim - len(tail)])
        batch = self.frame.batch
        if body == tail and len(lead) == 1 and lead[0] in (1, batch):
            return value.expand(batch, *tail)[self.rows]
        if body == tail and len(lead) == 2 and lead[0] in (1, batch):
            value = value.expand(batch, *value.shape[1:])
            if lead[1] == 1:
                return value[self.rows, 0]
            if lead[1] == self.columns.shape[1] and of.pos is not None:
                return value[self.rows, self.ordinals]
            if lead[1] == self.frame.prompt:
                return value[self.rows, self._within(self.local + self.frame.start, lead[1], of)]
        raise InterventionError(
            f"{of} has a value of shape {list(value.shape)}, which does not fit {self.site} {list(like.shape)}: give "
            f"{tail}, or [{batch}, *{tail}] (one a prompt), or [{batch}, {self.columns.shape[1]}, *{tail}] (one a position)"
        )

    def _within(self, columns: Tensor, size: int, of: Intervention) -> Tensor:
        if bool((columns >= size).any()):
            raise InterventionError(
                f"{of} reaches position {int(columns.max())}, but its source ends at {size - 1}; "
                'use when="prompt", or pos= for the positions that the source has'
            )
        return columns

    def recorded(self, of: Intervention) -> Tensor:
        """Values from another run: the same position of the same row, each counted in its own run's padding."""
        source = of.source
        assert source is not None
        try:
            value = source[self.site]
        except KeyError as error:
            raise InterventionError(f"{of}: {error.args[0]}") from None
        axis = self.site.pos_axis - (1 if self.site.unit is not None and self.site.unit_axis == 1 else 0)
        value = value.movedim(axis, 1) if axis != 1 else value
        batch = self.frame.batch
        if len(value) not in (1, batch):
            raise InterventionError(f"{of} takes from a run of {len(value)} prompts, but this run has {batch}")
        theirs = source.frame
        if source.columns is not None:  # the source kept some positions only
            place = self._among_kept(source, of)
        elif of.pos is None:
            place = self.local + self.frame.start - self.frame.left[self.rows] + theirs.left[self._row(theirs)]
        else:
            wanted = theirs.columns(of.pos, generated=False)
            assert wanted is not None
            if wanted.shape[1] != self.columns.shape[1]:
                raise InterventionError(f"{of} selects {self.columns.shape[1]} positions here and {wanted.shape[1]} there")
            place = wanted[self._row(theirs), self.ordinals]
        place = self._within(place, value.shape[1], of)
        rows = self.rows if len(value) > 1 else torch.zeros_like(self.rows)
        return value[rows.to(value.device), place.to(value.device)]

    def _row(self, theirs: Frame) -> Tensor:
        return self.rows if theirs.batch > 1 else torch.zeros_like(self.rows)

    def _among_kept(self, source: Recording, of: Intervention) -> Tensor:
        assert source.columns is not None
        rows = self._row(source.frame)
        logical = self.local + self.frame.start - self.frame.left[self.rows]
        if isinstance(of.pos, int) and of.pos < 0:
            logical = source.frame.count[rows] + of.pos
        column = logical + source.frame.left[rows]
        match = source.columns[rows] == column[:, None]
        if not bool(match.any(1).all()):
            raise InterventionError(f"{of} takes positions that its source did not keep")
        return match.int().argmax(1)

    def edited(self, of: Intervention) -> Tensor:
        assert of.fn is not None
        x = self.whole()
        context = {"site": self.site, "frame": self.frame, "start": self.frame.start}
        accepts = inspect.signature(of.fn).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in accepts):
            names = [p.name for p in accepts]
            context = {name: value for name, value in context.items() if name in names}
        new = of.fn(x, **context)
        if not isinstance(new, Tensor) or new.shape != x.shape:
            got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise InterventionError(f"{of}: the function returned {got}, but it was given {list(x.shape)} and must keep it")
        return new[self.rows.to(new.device), self.local.to(new.device)]


def _make(op: str, site: "str | Site", pos: Position, rows: Sequence[int] | None, when: When, **rest: Any) -> Intervention:
    if when not in ("all", "prompt", "generated"):
        raise InterventionError(f"when={when!r}: it is 'all', 'prompt' or 'generated'")
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
    """Remove: to "zero", to the "mean" over the batch's prompts at each position, to another prompt's ("resample"), or to a tensor."""
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
    """Any function `fn(activation, **context) -> activation`, on [prompt, pos, ...]; not saved to disk.

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
            row["source"] = item.source.pack(f"{index}.source", tensors)
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
