"""An edit: changes to weights by parameter name, as data that can be put on, taken off, kept and merged.

    edit = pc.editing.orthogonalise(model, direction)       # or rome(...), prune(...), Edit.dense({...})
    with edit.applied(model):
        model.generate("...")                               # edited inside, the same bits as before outside
    edit.save("edit/"); pc.editing.load("edit/")
    edit.merge(model, "edited-checkpoint/")                 # a plain Hugging Face folder

A change is low-rank (W + left @ right), dense (W + delta) or a mask (W * mask); those on one parameter are applied in
order. Shapes are those of the parameter as stored.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchclamp.model import Model


class EditError(ValueError):
    """An edit that does not fit the model, or cannot be exact there."""


@dataclass(frozen=True, eq=False)
class Change:
    """What happens to one parameter: `W + left @ right`, `W + left` (dense) or `W * left` (mask)."""

    parameter: str
    kind: Literal["low_rank", "dense", "mask"]
    left: Tensor
    right: Tensor | None = None

    def apply(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The changed weight, a new tensor of the same dtype; sums are taken in at least single precision."""
        exact = torch.promote_types(weight.dtype, torch.float32)
        left = self.left.to(weight.device)
        if self.kind == "mask":
            return weight * left.to(weight.dtype)
        delta = left.to(exact) if self.right is None else left.to(exact) @ self.right.to(weight.device, exact)
        return (weight.to(exact) + delta).to(weight.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter that it fits."""
        return tuple(self.left.shape) if self.right is None else (self.left.shape[0], self.right.shape[1])


@dataclass(frozen=True, eq=False)
class Edit:
    """Changes in the order in which they apply; `fit` and `provenance` say where they are from."""

    changes: tuple[Change, ...]
    fit: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def low_rank(cls, factors: Mapping[str, tuple[Tensor, Tensor]], fit: str = "", **provenance: Any) -> "Edit":
        """W + left @ right for each parameter; left [out, r] and right [r, in] as the parameter is stored."""
        changes = (Change(name, "low_rank", a.detach(), b.detach()) for name, (a, b) in factors.items())
        return cls(tuple(changes), fit, provenance)

    @classmethod
    def dense(cls, deltas: Mapping[str, Tensor], fit: str = "", **provenance: Any) -> "Edit":
        """W + delta for each parameter."""
        return cls(tuple(Change(name, "dense", d.detach()) for name, d in deltas.items()), fit, provenance)

    @classmethod
    def masks(cls, masks: Mapping[str, Tensor], fit: str = "", **provenance: Any) -> "Edit":
        """W * mask for each parameter; a mask is stored as it is given (bool, or numbers)."""
        return cls(tuple(Change(name, "mask", m.detach()) for name, m in masks.items()), fit, provenance)

    def __add__(self, other: "Edit") -> "Edit":
        """This edit, and then the other."""
        return Edit((*self.changes, *other.changes), f"{self.fit} + {other.fit}", {**self.provenance})

    def __repr__(self) -> str:
        names = sorted({change.parameter for change in self.changes})
        return f"Edit({self.fit!r}, {len(names)} parameters: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that it changes."""
        return sorted({change.parameter for change in self.changes})

    @contextmanager
    def applied(self, model: Model, *, tied: bool = False) -> Iterator[Model]:
        """The model with this edit inside the block; afterwards its weights are the same bits again.

        Raises `EditError` for a parameter that is not there, has another shape, or is shared by several modules (an
        embedding tied to the unembedding), unless `tied` says that all of them are meant.
        """
        found = self._checked(model.hf, tied)
        before = {name: parameter.detach().clone() for name, parameter in found.items()}
        try:
            with torch.no_grad():
                for change in self.changes:
                    parameter = found[change.parameter]
                    parameter.copy_(change.apply(parameter))
            yield model
        finally:
            with torch.no_grad():
                for name, parameter in found.items():
                    parameter.copy_(before[name])

    def merge(self, model: Model, folder: str | Path, *, tied: bool = False) -> Path:
        """Write the edited model as a Hugging Face checkpoint, with its tokenizer and a record of the edit.

        The folder must not exist, or be empty: nothing is written over.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty; a merged checkpoint goes into a new folder")
        if not hasattr(model.hf, "save_pretrained"):
            raise EditError(f"{type(model.hf).__name__} is no transformers model and has no checkpoint format")
        with self.applied(model, tied=tied):
            model.hf.save_pretrained(folder)  # type: ignore[operator]
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
        self.save(folder / "edit")
        return folder

    def save(self, folder: str | Path) -> Path:
        """Write `edit.json` and `edit.safetensors`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors, rows = {}, []
        for index, change in enumerate(self.changes):
            rows.append({"parameter": change.parameter, "kind": change.kind})
            tensors[f"{index}.left"] = change.left.cpu().contiguous().clone()
            if change.right is not None:
                tensors[f"{index}.right"] = change.right.cpu().contiguous().clone()
        save_file(tensors, folder / "edit.safetensors")
        about = {"format": "patchclamp.edit", "fit": self.fit, "provenance": dict(self.provenance), "changes": rows}
        (folder / "edit.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        return folder

    def _checked(self, module: nn.Module, tied: bool) -> dict[str, nn.Parameter]:
        every = dict(module.named_parameters(remove_duplicate=False))
        found = {}
        for change in self.changes:
            name = change.parameter
            if name not in every:
                import difflib

                near = difflib.get_close_matches(name, every, 1)
                raise EditError(f"there is no parameter {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
            parameter = every[name]
            if not parameter.is_floating_point():
                raise EditError(f"{name} is {parameter.dtype}: quantised weights cannot be edited; load it unquantised")
            if tuple(parameter.shape) != change.shape:
                raise EditError(f"{name} is {list(parameter.shape)}, its change {list(change.shape)}")
            shared = [other for other, p in every.items() if p is parameter and other != name]
            if shared and not tied:
                raise EditError(
                    f"{name} is the same tensor as {', '.join(shared)}: editing one edits both. Pass tied=True if that "
                    "is meant, or untie them first: pc.editing.untie(model)"
                )
            found[name] = parameter
        return found


def load(folder: str | Path) -> Edit:
    """The edit that `Edit.save` wrote."""
    from safetensors.torch import load_file

    folder = Path(folder)
    about = json.loads((folder / "edit.json").read_text(encoding="utf-8"))
    if about.get("format") != "patchclamp.edit":
        raise EditError(f"{folder / 'edit.json'} was not written by Edit.save")
    tensors = load_file(folder / "edit.safetensors")
    changes = [
        Change(row["parameter"], row["kind"], tensors[f"{i}.left"], tensors.get(f"{i}.right"))
        for i, row in enumerate(about["changes"])
    ]
    return Edit(tuple(changes), about["fit"], about["provenance"])


def untie(model: Model) -> list[str]:
    """Give every module that shares a parameter a copy of its own; the names that were untied. Changes no output.

    This is done to the model in place, and to its configuration, so that a saved checkpoint stays untied.
    """
    seen: dict[int, str] = {}
    untied = []
    for name, parameter in list(model.hf.named_parameters(remove_duplicate=False)):
        if seen.setdefault(id(parameter), name) == name:
            continue
        path, _, attribute = name.rpartition(".")
        copy = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        setattr(model.hf.get_submodule(path), attribute, copy)
        untied.append(name)
    config = getattr(model.hf, "config", None)
    if untied and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False  # type: ignore[union-attr]
    return untied


def named(model: Model, module_path: str, names: Sequence[str] = ("weight", "bias")) -> dict[str, nn.Parameter]:
    """The parameters of one module by their full names; only those that are there."""
    module = model.hf.get_submodule(module_path)
    found = {name: getattr(module, name, None) for name in names}
    return {f"{module_path}.{name}": p for name, p in found.items() if isinstance(p, nn.Parameter)}
