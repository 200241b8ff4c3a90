"""A direction: a vector at a site, how it was found, and what can be done with it.

    joy = pc.steering.mean_centred(model, joyful, background=anything, site="resid_post.2")
    model.generate("The day", do=[joy.add(scale=1.5)], max_new_tokens=12).text
    model.run(prompts, do=joy.ablated(model))           # no layer can write it any more
    joy.save("joy.safetensors"); pc.steering.load("joy.safetensors")

Its vector is in the units of the activation and is never normalised behind your back: `norm`, `unit()` and
`rescaled(norm)` say and change its length.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.interventions import Intervention, add, clamp, project_out
from patchclamp.interventions import When as When
from patchclamp.model import Model
from patchclamp.positions import Position
from patchclamp.sites import Site, parse


class DirectionError(ValueError):
    """Directions that do not fit together, or a file that holds none."""


@dataclass(frozen=True, eq=False)
class Direction:
    """`vector` [d] at `site`, found by `fit`; `provenance` says from what (model, prompts, layer scores, seed).

    Sums and differences of directions at one site are directions; so are multiples.
    """

    site: str
    vector: Float[Tensor, "d"]
    fit: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        parse(str(self.site))
        vector = torch.as_tensor(self.vector).detach().float().cpu()
        if vector.ndim != 1:
            raise DirectionError(f"a direction is one vector [d], not {list(vector.shape)}")
        if not bool(vector.isfinite().all()):
            raise DirectionError(f"the direction at {self.site} is not finite")
        object.__setattr__(self, "site", str(self.site))
        object.__setattr__(self, "vector", vector)

    def __repr__(self) -> str:
        return f"Direction({self.site}, d={len(self.vector)}, norm={self.norm:.3g}, fit={self.fit!r})"

    # ── length ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def norm(self) -> float:
        """Euclidean length, in units of the activation."""
        return float(self.vector.norm())

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
        return float(torch.nn.functional.cosine_similarity(self.vector, other.vector, dim=0))

    def without(self, other: "Direction") -> "Direction":
        """This direction less its component along `other`."""
        self._fits(other)
        unit = other.unit().vector
        return replace(self, vector=self.vector - (self.vector @ unit) * unit, fit=f"{self.fit} without {other.fit}")

    def at(self, site: "str | Site") -> "Direction":
        """The same vector at another site."""
        return replace(self, site=str(site))

    # ── what is done with it ──────────────────────────────────────────────────────────────────────────────────────

    def project(self, activation: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
        """How far activations go along it: their component, in units of the activation."""
        return activation @ self.unit().vector.to(activation)

    def add(self, scale: float = 1.0, *, pos: Position = None, when: When = "all") -> Intervention:
        """Add `scale` times the vector."""
        return add(self.site, self.vector, scale, pos, when=when)

    def clamp(self, value: float, *, pos: Position = None, when: When = "all") -> Intervention:
        """Hold the component along it at `value`, in units of the activation."""
        return clamp(self.site, value, pos, direction=self.vector, when=when)

    def ablate(self, *, pos: Position = None, when: When = "all") -> Intervention:
        """Remove the component along it at its own site."""
        return project_out(self.site, self.vector, pos, when=when)

    def ablated(self, model: Model) -> list[Intervention]:
        """Remove it from everything that is written to the residual stream, so that it is never there.

        That is x - (x.r)r at the embeddings and at each layer's attention and MLP output (Arditi et al. 2024,
        arXiv:2406.11717, eq. 4). Raises `DirectionError` where the width is not that of the stream.
        """
        if len(self.vector) != model.d_model:
            raise DirectionError(
                f"only what has the width of the residual stream can be ablated everywhere: "
                f"{self.site} has {len(self.vector)} dimensions, {model.name}'s stream {model.d_model}"
            )
        return [project_out(site, self.vector) for site in writes(model)]

    # ── on disk ───────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the vector, and everything else as metadata."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"site": self.site, "fit": self.fit, "provenance": json.dumps(dict(self.provenance))}
        save_file({"vector": self.vector.contiguous()}, path, {"format": "patchclamp.direction", **about})
        return path

    def _fits(self, other: "Direction", sites: bool = True) -> None:
        if not isinstance(other, Direction):
            raise DirectionError(f"a Direction goes with a Direction, not with a {type(other).__name__}")
        if len(self.vector) != len(other.vector):
            raise DirectionError(f"{self.site} has {len(self.vector)} dimensions, {other.site} {len(other.vector)}")
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
    vector = torch.randn(len(like.vector), generator=generator)
    return Direction(like.site, vector, "random", {"seed": seed}).rescaled(like.norm)


def writes(model: Model) -> list[Site]:
    """The sites whose sum is the residual stream: embeddings, and what each layer's parts add."""
    kinds = ("embed", "pos_embed", "attn_out", "cross_attn_out", "mlp_out")
    return [site for site in model.sites() if site.kind in kinds and not site.stack]
