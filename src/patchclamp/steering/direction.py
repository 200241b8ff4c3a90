"""A direction: a vector at a site, how it was found, and what can be done with it.

    joy = pc.steering.mean_centred(model, joyful, background=anything, site="resid_post.2")
    model.generate("The day", do=[joy.add(scale=1.5)], max_new_tokens=12).text
    model.run(prompts, do=joy.ablated(model))           # no layer can write it any more
    joy.save("joy.safetensors"); pc.steering.load("joy.safetensors")

Its vector is in the units of the activation and is never normalised behind your back: `norm`, `unit()` and
`rescaled(norm)` say and change its length.

A network over grids keeps its features second, [batch, feature, ...space], and a direction of it has a number for each
feature and place. Such a one is a single pattern, added, held and taken out as a whole; `dropped()`, its mean over
space, is the same at all places and works at each of them, on any grid.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.interventions import Intervention, add, clamp, edit, project_out
from patchclamp.interventions import When as When
from patchclamp.model import Model
from patchclamp.positions import Position
from patchclamp.sites import Site, parse


class DirectionError(ValueError):
    """Directions that do not fit together, or a file that holds none."""


@dataclass(frozen=True, eq=False)
class Direction:
    """`vector` [d] at `site`, found by `fit`; `provenance` says from what (model, prompts, layer scores, seed).

    [d, ...space] where the site is a module that returns [batch, d, ...space]. Sums and differences of directions at
    one site are directions; so are multiples.
    """

    site: str
    vector: Float[Tensor, "d *space"]
    fit: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        kinds = parse(str(self.site)).kinds
        vector = torch.as_tensor(self.vector).detach().float().cpu()
        if vector.ndim != 1 and ("module" not in kinds or vector.ndim == 0):
            raise DirectionError(f"a direction at {self.site} is one vector [d], not {list(vector.shape)}")
        if not bool(vector.isfinite().all()):
            raise DirectionError(f"the direction at {self.site} is not finite")
        object.__setattr__(self, "site", str(self.site))
        object.__setattr__(self, "vector", vector)

    def __repr__(self) -> str:
        grid = f", space={list(self.space)}" if self.space else ""
        return f"Direction({self.site}, d={len(self.vector)}{grid}, norm={self.norm:.3g}, fit={self.fit!r})"

    # ── length ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def norm(self) -> float:
        """Euclidean length, in units of the activation: at one place, root mean square over places."""
        return float(self.vector.norm() / math.prod(self.space) ** 0.5)

    def rescaled(self, norm: float) -> "Direction":
        """The same way, of this length. Raises `DirectionError` for the zero vector."""
        if self.norm == 0:
            raise DirectionError(f"the direction at {self.site} is zero and points nowhere")
        return replace(self, vector=self.vector * (norm / self.norm))

    def unit(self) -> "Direction":
        """The same way, of length 1."""
        return self.rescaled(1.0)

    # ── arithmetic ────────────────────────────────────────────────────────────────────────────────────────────────

    def __add__(self, other: "Direction") -> "Direction":
        self._fits(other)
        return replace(self, vector=self.vector + other.vector, fit=f"{self.fit} + {other.fit}")

    def __sub__(self, other: "Direction") -> "Direction":
        return self + -other

    def __neg__(self) -> "Direction":
        return -1.0 * self

    def __mul__(self, factor: float) -> "Direction":
        return replace(self, vector=self.vector * float(factor), fit=f"{factor:g} {self.fit}")

    __rmul__ = __mul__

    def cosine(self, other: "Direction") -> float:
        """Cosine of the angle between two directions of one width; their sites may differ."""
        self._fits(other, sites=False)
        one, two = (vector.flatten() for vector in torch.broadcast_tensors(self.vector, other.vector))
        return float(torch.nn.functional.cosine_similarity(one, two, dim=0))

    def without(self, other: "Direction") -> "Direction":
        """This direction less its component along `other`."""
        self._fits(other)
        mine, _ = torch.broadcast_tensors(self.vector, other.vector)
        along = other._component(mine[None])[0] if self.space else other.project(mine)
        return replace(self, vector=mine - along * other.unit().vector, fit=f"{self.fit} without {other.fit}")

    def at(self, site: "str | Site") -> "Direction":
        """The same vector at another site."""
        return replace(self, site=str(site))

    # ── space ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def space(self) -> tuple[int, ...]:
        """Its grid: all 1 where it is the same at all places, empty for a vector [d]."""
        return tuple(self.vector.shape[1:])

    def dropped(self) -> "Direction":
        """Its mean over space, which is the same at all places, whatever the grid."""
        self._becomes(self.space)
        vector = self.vector.mean(tuple(range(1, self.vector.ndim)), keepdim=True)
        return replace(self, vector=vector, fit=f"{self.fit}, space dropped")

    def resized(self, space: Sequence[int]) -> "Direction":
        """Stretched to another grid, linearly between places."""
        self._becomes(space)
        modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
        if len(space) not in modes:
            raise DirectionError(f"space of {len(space)} axes cannot be stretched; 1, 2 or 3 can")
        mode = modes[len(space)]
        vector = torch.nn.functional.interpolate(self.vector[None], tuple(space), mode=mode, align_corners=False)[0]
        return replace(self, vector=vector)

    def cropped(self, space: Sequence[int]) -> "Direction":
        """Cut to another grid about its middle, or set in zeros where that is larger."""
        self._becomes(space)
        vector = self.vector
        for axis, (here, there) in enumerate(zip(self.space, space, strict=True), start=1):
            before = abs(here - there) // 2
            if there <= here:
                vector = vector.narrow(axis, before, there)
            else:
                wider = vector.new_zeros([there if i == axis else size for i, size in enumerate(vector.shape)])
                wider.narrow(axis, before, here).copy_(vector)
                vector = wider
        return replace(self, vector=vector)

    # ── what is done with it ──────────────────────────────────────────────────────────────────────────────────────

    def project(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """How far activations [..., d] go along it: their component, in units of the activation; [...].

        Of [batch, d, ...space] one number a place for a direction that is the same at all places, [batch, ...space],
        and one an input for a pattern in space, [batch].
        """
        return self._component(activation).squeeze(self._axes)

    def add(self, scale: float = 1.0, *, pos: Position = None, when: When = "all") -> Intervention:
        """Add `scale` times the vector; over a grid, where it was: another grid is refused unless space is dropped."""
        if 1 not in self.space:
            return add(self.site, self.vector, scale, pos, when=when)
        scaled = self * scale
        return edit(self.site, lambda x: x + scaled._matching(x), pos, when=when)

    def clamp(self, value: float, *, pos: Position = None, when: When = "all") -> Intervention:
        """Hold the component along it at `value`, in units of the activation."""
        if not self.space:
            return clamp(self.site, value, pos, direction=self.vector, when=when)
        unit = self.unit()
        return edit(self.site, lambda x: x + (value - self._component(x)) * unit._matching(x), pos, when=when)

    def ablate(self, *, pos: Position = None, when: When = "all") -> Intervention:
        """Remove the component along it at its own site."""
        if self.space:
            return self.clamp(0, pos=pos, when=when)
        return project_out(self.site, self.vector, pos, when=when)

    def ablated(self, model: Model) -> list[Intervention]:
        """Remove it from everything that is written to the residual stream, so that it is never there.

        That is x - (x.r)r at the embeddings and at each layer's attention and MLP output (Arditi et al. 2024,
        arXiv:2406.11717, eq. 4). Raises `DirectionError` where the width is not that of the stream.
        """
        if self.space or len(self.vector) != model.d_model:
            raise DirectionError(
                f"only what has the width of the residual stream can be ablated everywhere: "
                f"{self.site} has {len(self.vector)} dimensions, {model.name}'s stream {model.d_model}"
            )
        return [project_out(site, self.vector) for site in writes(model)]

    # ── on disk ───────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the vector, with or without space, and everything else as metadata."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"site": self.site, "fit": self.fit, "provenance": json.dumps(dict(self.provenance))}
        save_file({"vector": self.vector.contiguous()}, path, {"format": "patchclamp.direction", **about})
        return path

    # ── what goes with what ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def _axes(self) -> tuple[int, ...]:
        """Of an activation, those that a component is summed over: features, and space in which the vector differs."""
        return (1, *(axis for axis, size in enumerate(self.space, start=2) if size > 1)) if self.space else (-1,)

    def _component(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The component of activations along it, with the axes that are summed over left in."""
        unit = self.unit()
        if not self.space:
            return (x @ unit.vector.to(x))[..., None]
        vector = unit._matching(x)
        axes = [axis - 1 for axis in self._axes]
        return (x * vector).sum(self._axes, keepdim=True) / vector.square().sum(axes, keepdim=True)

    def _matching(self, x: Tensor) -> Tensor:
        """The vector beside an activation [batch, d, ...space], if it fits there."""
        sizes = list(zip(self.space, x.shape[2:], strict=False))
        fits = x.ndim == self.vector.ndim + 1 and x.shape[1] == len(self.vector)
        if not fits or any(mine not in (1, other) for mine, other in sizes):
            raise DirectionError(
                f"{self.site} returns {list(x.shape)}, and the direction is for [batch, {len(self.vector)}, ...space] "
                f"on the grid {list(self.space)}: resized() and cropped() bring it to another, dropped() to any"
            )
        return self.vector.to(x.device)

    def _becomes(self, space: Sequence[int]) -> None:
        if not self.space:
            raise DirectionError(f"the direction at {self.site} is one vector [{len(self.vector)}] and has no space")
        if len(space) != len(self.space) or min(space) < 1:
            raise DirectionError(f"a grid of {list(self.space)} cannot become one of {list(space)}")

    def _fits(self, other: "Direction", sites: bool = True) -> None:
        if not isinstance(other, Direction):
            raise DirectionError(f"a Direction goes with a Direction, not with a {type(other).__name__}")
        if len(self.vector) != len(other.vector):
            raise DirectionError(f"{self.site} has {len(self.vector)} dimensions, {other.site} {len(other.vector)}")
        sizes = list(zip(self.space, other.space, strict=False))
        if len(self.space) != len(other.space) or any(a != b and 1 not in (a, b) for a, b in sizes):
            raise DirectionError(f"{self.site} has the grid {list(self.space)}, {other.site} {list(other.space)}")
        if sites and self.site != other.site:
            raise DirectionError(f"one is at {self.site}, the other at {other.site}; `at` moves one to the other")


def load(path: str | Path) -> Direction:
    """The direction that `Direction.save` wrote."""
    from safetensors import safe_open

    with safe_open(Path(path), "pt") as file:
        about = file.metadata() or {}
        if about.get("format") != "patchclamp.direction":
            raise DirectionError(f"{path} holds no direction: it was not written by Direction.save")
        return Direction(about["site"], file.get_tensor("vector"), about["fit"], json.loads(about["provenance"]))


def random(like: Direction, *, seed: int = 0) -> Direction:
    """A random direction at the same site with the same norm: the control of every direction."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(like.vector.shape, generator=generator)
    return Direction(like.site, vector, "random", {"seed": seed}).rescaled(like.norm)


def writes(model: Model) -> list[Site]:
    """The sites whose sum is the residual stream: embeddings, and what each layer's parts add."""
    kinds = ("embed", "pos_embed", "attn_out", "cross_attn_out", "mlp_out")
    return [site for site in model.sites() if site.kind in kinds and not site.stack]
