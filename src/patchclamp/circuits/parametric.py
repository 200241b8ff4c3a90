"""Parametric linear maps: a typed algebra of what is linear in a network.

A parametric map P x V -> W takes a vector and parameters. Composing, tensoring and adding maps takes the product of
their parameter spaces; these are the 1-morphisms of Para(Vect) (O'Neill 2025, arXiv:2501.02931, after Fong, Spivak and
Tuyéras 2019). Attention with its patterns held fixed is such a map, 1 + sum over heads of A_h (x) W_OV,h, and a stack
of layers multiplies out into its paths.

    layer = residual(linear("A", 5, 5) @ linear("OV", 8, 8))        # @ is the tensor product
    model = layer >> other                                          # first layer, then other
    model(x, weights)                                               # x [5, 8], weights by name
    [str(path) for path in paths(model)]                            # every composite that the sum consists of
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

Space = tuple[int, ...]
"""A tensor product of vector spaces, by their dimensions: (positions, d_model)."""


class CompositionError(TypeError):
    """Maps that do not fit together; says which spaces meet."""


@dataclass(frozen=True)
class Map:
    """A linear map from `source` to `target` with named matrices as parameters; made by the functions below.

    One name is one parameter: a map that uses it twice has tied weights, and its parameter space counts it once.
    """

    op: Literal["identity", "linear", "compose", "tensor", "add"]
    source: Space
    target: Space
    name: str = ""
    parts: tuple["Map", ...] = ()

    @property
    def parameters(self) -> dict[str, Space]:
        """The parameter space, as the shape [target, source] of each of the matrices it is the product of."""
        if self.op == "linear":
            return {self.name: self.target + self.source}
        found: dict[str, Space] = {}
        for part in self.parts:
            for name, shape in part.parameters.items():
                if found.setdefault(name, shape) != shape:
                    raise CompositionError(f"{name} is {list(found[name])} in one place and {list(shape)} in another")
        return found

    @property
    def dimension(self) -> int:
        """Dimension of the parameter space."""
        return sum(prod(shape) for shape in self.parameters.values())

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The image of `x`, of the shape `source`, under the map with these weights, each [target, source]."""
        if tuple(x.shape) != self.source:
            raise CompositionError(f"{self} takes a vector of shape {list(self.source)}, not {list(x.shape)}")
        return self._columns(x.reshape(-1, 1), weights).reshape(self.target)

    def _columns(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The images of the columns of `x` [source, n], as [target, n], source and target flattened."""
        match self.op:
            case "identity":
                return x
            case "linear":
                return self._weight(weights) @ x
            case "compose":
                first, then = self.parts
                return then._columns(first._columns(x, weights), weights)
            case "add":
                left, right = self.parts
                return left._columns(x, weights) + right._columns(x, weights)
        left, right = self.parts
        n = x.shape[1]
        # Either factor sees the other's space as more columns.
        y = left._columns(x.reshape(prod(left.source), -1), weights).reshape(-1, prod(right.source), n)
        z = right._columns(y.movedim(1, 0).reshape(prod(right.source), -1), weights)
        return z.reshape(prod(right.target), -1, n).movedim(0, 1).reshape(-1, n)

    def _weight(self, weights: Mapping[str, Tensor]) -> Tensor:
        if self.name not in weights:
            raise KeyError(f"no weights for {self.name}; there are {', '.join(weights) or 'none'}")
        found = weights[self.name]
        if tuple(found.shape) != self.target + self.source:
            wanted = list(self.target + self.source)
            raise CompositionError(f"{self.name} is [target, source] = {wanted}, not {list(found.shape)}")
        return found

    def __rshift__(self, then: "Map") -> "Map":
        return compose(self, then)

    def __matmul__(self, other: "Map") -> "Map":
        return tensor(self, other)

    def __add__(self, other: "Map") -> "Map":
        return add(self, other)

    def __str__(self) -> str:
        match self.op:
            case "identity":
                return "1"
            case "linear":
                return self.name
            case "compose":
                return " >> ".join(str(part) for part in self.parts)
            case "tensor":
                return "(" + " ⊗ ".join(str(part) for part in self.parts) + ")"
        return "(" + " + ".join(str(part) for part in self.parts) + ")"


def identity(*space: int) -> Map:
    """The identity on a space; no parameters."""
    return Map("identity", space, space)


def linear(name: str, target: int, source: int) -> Map:
    """A matrix that is itself the parameter, [target, source].

    >>> import torch
    >>> linear("W", 3, 2)(torch.ones(2), {"W": torch.ones(3, 2)}).tolist()
    [2.0, 2.0, 2.0]
    """
    return Map("linear", (source,), (target,), name)


def compose(first: Map, then: Map) -> Map:
    """`first`, then `then`; `CompositionError` where the one does not end where the other begins."""
    if first.target != then.source:
        raise CompositionError(f"{first} ends in {list(first.target)}, but {then} begins in {list(then.source)}")
    return Map("compose", first.source, then.target, parts=(first, then))


def tensor(left: Map, right: Map) -> Map:
    """Both side by side, on the tensor product of their spaces: for A (x) W, `x` becomes A x W^T."""
    return Map("tensor", left.source + right.source, left.target + right.target, parts=(left, right))


def add(left: Map, right: Map) -> Map:
    """The sum of two maps between the same spaces."""
    if (left.source, left.target) != (right.source, right.target):
        raise CompositionError(
            f"{left} goes from {list(left.source)} to {list(left.target)}, "
            f"{right} from {list(right.source)} to {list(right.target)}: only maps between the same spaces add up"
        )
    return Map("add", left.source, left.target, parts=(left, right))


def residual(inner: Map) -> Map:
    """1 + inner."""
    if inner.source != inner.target:
        raise CompositionError(f"{inner} goes from {list(inner.source)} to {list(inner.target)}: no residual around it")
    return add(identity(*inner.source), inner)


def paths(whole: Map) -> list[Map]:
    """The maps without a sum in them whose sum is `whole`, by distributing composition and tensor over sums.

    >>> layer = residual(linear("a", 2, 2))
    >>> [str(path) for path in paths(layer >> residual(linear("b", 2, 2)))]
    ['1', 'b', 'a', 'a >> b']
    """
    match whole.op:
        case "add":
            return [path for part in whole.parts for path in paths(part)]
        case "tensor":
            return [tensor(left, right) for left in paths(whole.parts[0]) for right in paths(whole.parts[1])]
        case "compose":
            return [_joined(first, then) for first in paths(whole.parts[0]) for then in paths(whole.parts[1])]
    return [whole]


def _joined(first: Map, then: Map) -> Map:
    """Composition without the identities, which are its units."""
    if first.op == "identity":
        return then
    return first if then.op == "identity" else compose(first, then)
