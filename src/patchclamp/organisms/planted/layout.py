"""Where planted features point, and everything else that is true of them: `world.truth()`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from patchclamp.organisms.planted.world import Planted

_LAYOUT = 1 << 32  # purposes of random numbers from here on are the layout's; those below are a row's


@dataclass(frozen=True, eq=False)
class PlantedTruth:
    """What is true of planted activations.

    directions     Float[model, feature, d], unit vectors; of a circle its first axis
    planes         Float[model, circle, 2, d]: two orthonormal axes of each feature in `circles`
    strengths      Float[model, feature]
    probabilities  Float[feature]: how often each fires
    offsets        Float[model, d]: the constant part
    parents        a feature's parent, or -1
    groups         features that fire together more often than by chance
    labels         the kind of each feature
    encoder, decoder  Float[unit, d]: what the teacher's units read and write (unit vectors); 0 rows without a teacher
    """

    directions: Float[Tensor, "model feature d"]
    planes: Float[Tensor, "model circle two d"]
    strengths: Float[Tensor, "model feature"]
    probabilities: Float[Tensor, "feature"]
    offsets: Float[Tensor, "model d"]
    encoder: Float[Tensor, "unit d"]
    decoder: Float[Tensor, "unit d"]
    circles: tuple[int, ...]
    parents: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]

    @property
    def features(self) -> Mapping[str, Tensor]:
        """By name ("child.7": its label and number) the direction in the first model, or the circle's plane."""
        circle = {feature: index for index, feature in enumerate(self.circles)}
        return {
            f"{label}.{i}": self.planes[0, circle[i]] if i in circle else self.directions[0, i]
            for i, label in enumerate(self.labels)
        }

    def labelled(self, label: str) -> list[int]:
        """The features of this label; LookupError where there is none."""
        found = [i for i, own in enumerate(self.labels) if own == label]
        if not found:
            raise LookupError(f"no feature is labelled {label!r}; there are {', '.join(sorted(set(self.labels)))}")
        return found

    def children(self, feature: int) -> list[int]:
        """The features that fire only where `feature` does, directly below it."""
        return [i for i, parent in enumerate(self.parents) if parent == feature]

    def to(self, device: torch.device | str) -> "PlantedTruth":
        """The same on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})


def lay_out(world: "Planted") -> PlantedTruth:
    """The directions of a world and what else follows from its seed."""
    models, parents = world.models, world.parents or (-1,) * world.features
    drawn = [_axes(world, 0 if world.aligned else model, parents) for model in range(models)]
    directions = np.stack([first for first, _ in drawn])
    planes = np.stack([np.stack([first[list(world.circles)], second], 1) for first, second in drawn])
    offsets = world.offset * _units(_generator(world.seed, 1 << 20).standard_normal((models, world.width)))
    encoder = decoder = np.zeros((0, world.width))
    if world.teacher is not None:
        generator = _generator(world.seed, 1 << 21)
        encoder, decoder = _units(generator.standard_normal((2, world.teacher.units, world.width)))
        if world.teacher.reads:
            read = generator.random((world.teacher.units, world.features)).argsort(1)[:, : world.teacher.reads]
            encoder = _units(directions[0][read].sum(1))
    strengths = np.array(world.strengths) if world.strengths else np.ones((1, world.features))
    arrays = (directions, planes, strengths, np.array(world.probabilities), offsets, encoder, decoder)
    return PlantedTruth(
        *(torch.from_numpy(np.ascontiguousarray(array)).float() for array in arrays),
        circles=world.circles,
        parents=parents,
        groups=world.groups,
        labels=world.labels or ("feature",) * world.features,
    )


def _axes(world: "Planted", model: int, parents: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Directions [feature, d] of one model, and the second axes [circle, d] of its circles."""
    generator = _generator(world.seed, model)
    count, circles = world.features, list(world.circles)
    if world.geometry == "neurons":
        return _on_neurons(world, generator), np.zeros((0, world.width))
    drawn = generator.standard_normal((count + len(circles), world.width))
    if world.geometry == "orthogonal":
        q, r = np.linalg.qr(drawn.T)
        drawn = (q * np.sign(np.diag(r))).T
    first, second = _units(drawn[:count]), drawn[count:]
    if world.child_cosine:
        for child, parent in enumerate(parents):
            if parent >= 0:
                own = _units(first[child] - (first[child] @ first[parent]) * first[parent])
                first[child] = world.child_cosine * first[parent] + (1 - world.child_cosine**2) ** 0.5 * own
    along = (second * first[circles]).sum(1, keepdims=True)
    return first, _units(second - along * first[circles])


def _on_neurons(world: "Planted", generator: np.random.Generator) -> np.ndarray:
    """Each direction equal on its neurons and zero elsewhere; no neuron is shared while there are enough."""
    directions = np.zeros((world.features, world.width))
    shared = sum(world.support) > world.width
    order, taken = generator.permutation(world.width), 0
    for feature, size in enumerate(world.support):
        neurons = generator.permutation(world.width)[:size] if shared else order[taken : taken + size]
        directions[feature, neurons] = size**-0.5
        taken += size
    return directions


def _units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, _LAYOUT + purpose], dtype=np.uint64)))
