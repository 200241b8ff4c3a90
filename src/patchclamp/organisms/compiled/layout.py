"""Where everything goes: the component that makes each variable, its subspace, and the vectors of its values.

    layout = lay_out(program, rotate=False, superpose=False, seed=0)
    layout.places[expression].site, layout.places[expression].code
    weight = layout.read @ matrix          # [d_model, out] of a matrix [coordinate, out]
    weight = matrix @ layout.write         # [in, d_model] of a matrix [in, coordinate]

Weights are thought of in coordinates, a few for each variable, and the residual stream holds coordinates times `write`.
Plainly, coordinate i is +1 in dimension i and -1 in dimension d_model / 2 + i, its mirror image, so that the sum is
zero. Rotated, coordinates are random orthonormal directions that sum to zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.organisms.compiled.language import (
    Aggregate,
    Constant,
    Expression,
    Indices,
    Map,
    Share,
    Tokens,
)
from patchclamp.organisms.compiled.packing import code, overlap, packing
from patchclamp.organisms.compiled.program import Program
from patchclamp.sites import Site

LARGEST = 4.0  # what a number may be at most in the stream, whose every reader has rounding errors of its size


@dataclass(frozen=True)
class Place:
    """One variable: its component, when that runs (-1: the embeddings, 2l: attention of layer l, 2l + 1: its MLP), its
    coordinates, and the vector of each value in them (of a number, the one that is scaled by it).
    """

    site: Site
    time: int
    dims: slice
    code: Float[Tensor, "value d"]

    @property
    def overlap(self) -> float:
        """The greatest dot product of two values, at least 0."""
        return overlap(self.code)


@dataclass(frozen=True)
class Layout:
    """All places, and the maps between coordinates and the stream; `bos` is the coordinate that is 1 at BOS."""

    places: Mapping[Expression, Place]
    homes: Mapping[str, Site]
    bos: int
    layers: int
    heads: int
    d_head: int
    write: Float[Tensor, "coordinate d_model"]
    read: Float[Tensor, "d_model coordinate"]
    unpacked: Mapping[Expression, str]

    @property
    def width(self) -> int:
        """How many coordinates there are."""
        return len(self.write)


def lay_out(program: Program, *, rotate: bool, superpose: bool, seed: int) -> Layout:
    """A home and a subspace for each variable; one spare head in each layer, and more where d_model asks for it."""
    sites, times = _homes(program)
    codes, unpacked = _codes(program, superpose, seed)
    places: dict[Expression, Place] = {}
    start = 1  # coordinate 0 is BOS
    for expression in sites:
        dims = codes[expression].shape[1]
        places[expression] = Place(sites[expression], times[expression], slice(start, start + dims), codes[expression])
        start += dims
    layers = max((site.layer for site in sites.values() if site.layer is not None), default=0) + 1
    heads = 1 + max((site.unit + 1 for site in sites.values() if site.unit is not None), default=0)
    needed = start + 1 if rotate else 2 * start
    widest = max((_head_size(program, expression, codes) for expression in sites), default=1)
    d_head = max(widest, -(-needed // heads))
    d_head += d_head * heads % 2  # the mirror needs two halves
    write, read = _rotated(start, heads * d_head, seed) if rotate else _mirrored(start, heads * d_head)
    homes = {name: sites[expression] for name, expression in program.variables.items()}
    return Layout(places, homes, 0, layers, heads, d_head, write, read, unpacked)


def _homes(program: Program) -> tuple[dict[Expression, Site], dict[Expression, int]]:
    """Each variable's component, at the earliest: heads read what was written before their layer, MLPs also heads of
    their own.
    """
    sites: dict[Expression, Site] = {}
    times: dict[Expression, int] = {}
    heads: dict[int, int] = {}
    for expression in program.variables.values():
        after = max((times[source] for source in expression.inputs if source in times), default=-1)
        match expression:
            case Tokens():
                sites[expression], times[expression] = Site("embed"), -1
            case Indices():
                sites[expression], times[expression] = Site("pos_embed"), -1
            case Aggregate() | Share():
                layer = (after + 2) // 2
                sites[expression] = Site("z", layer, heads.setdefault(layer, 0))
                times[expression] = 2 * layer
                heads[layer] += 1
            case _:
                layer = (after + 1) // 2
                sites[expression], times[expression] = Site("mlp_out", layer), 2 * layer + 1
    return sites, times


def _codes(
    program: Program, superpose: bool, seed: int
) -> tuple[dict[Expression, Float[Tensor, "value d"]], Mapping[Expression, str]]:
    """The vectors of each variable's values: one-hot, or packed with those that share its group."""
    codes: dict[Expression, Float[Tensor, "value d"]] = {}
    unpacked: Mapping[Expression, str] = {}
    if superpose:
        groups, unpacked = packing(program)
        for group in groups:
            values = list(dict.fromkeys(value for member in group for value in program.domain(member)))
            vectors = code(len(values), seed)
            for member in (one for one in group if not isinstance(one, Constant)):
                codes[member] = vectors[[values.index(value) for value in program.domain(member)]]
    for expression in program.variables.values():
        if expression not in codes:
            size = 1 if expression.numerical else len(program.domain(expression))
            codes[expression] = torch.eye(size, dtype=torch.double) * _scale(program, expression)
    return codes, unpacked


def _scale(program: Program, expression: Expression) -> float:
    """How long the direction of a number is: numbers that a map must tell apart are a quarter apart, if they fit."""
    if not expression.numerical:
        return 1.0
    if not any(isinstance(other, Map) and other.source is expression for other in program.variables.values()):
        return 1.0
    numbers = program.domain(expression)
    gap = min((high - low for low, high in pairwise(numbers)), default=1)
    largest = max(1, *(abs(number) for number in numbers))
    return max(1.0, min(0.25 / float(gap), LARGEST / float(largest)))


def _head_size(program: Program, expression: Expression, codes: Mapping[Expression, Tensor]) -> int:
    """Dimensions that a head needs: for what keys are compared by and the place of rest, or for what it moves."""
    if not isinstance(expression, Aggregate | Share):
        return 1
    keys, queries = expression.selector.keys, expression.selector.queries
    packed = keys in codes and codes[keys].shape[1] < len(codes[keys])
    comparing = min(len(program.domain(keys)), len(program.domain(queries)))
    return max((codes[keys].shape[1] if packed else comparing) + 1, codes[expression].shape[1])


def _mirrored(width: int, d_model: int) -> tuple[Tensor, Tensor]:
    half = torch.eye(width, d_model // 2, dtype=torch.double)
    write = torch.cat([half, -half], dim=1)
    return write, write.T / 2


def _rotated(width: int, d_model: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(d_model, width, generator=generator, dtype=torch.double)
    directions = torch.linalg.qr(directions - directions.mean(0)).Q
    return directions.T.contiguous(), directions
