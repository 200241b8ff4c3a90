"""What every probe is: scikit-learn's fit, predict and score, over many sites and many labels at once.

    probe = Logistic(C=0.1).fit(x, y)          # x [..., row, d]; y [row], [..., row] or [..., row, label]
    probe.score(x_test, y_test)                # accuracy of each: [...] or [..., label]; a float where there is one
    probe.probe_.weight, probe.probe_.bias     # [..., d] and [...], in the units of x
    probe.probe_.as_direction()                # for one label at one site: its vector and where it belongs

Labels are binary; several classes are several labels, each against the rest: `one_hot(classes)`. What reads numbers is
in `regression`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 2**21
"""Numbers of x that are worked on at once: about what stays in a processor's cache, in float32."""


class Vector(NamedTuple):
    """A direction in activations, and the site at which they were read (None where the probe was not told)."""

    vector: Float[Tensor, " d"]
    site: str | None


@dataclass(frozen=True, eq=False)
class Probe:
    """One linear function of activations for each site and label: x . weight + bias, positive where it says yes.

    `labelled` says whether the last dimension before d is that of labels. `site` is where x was recorded.
    """

    weight: Float[Tensor, "*probe d"]
    bias: Float[Tensor, "*probe"]
    labelled: bool = False
    site: str | None = None

    def decision(self, x: Float[Tensor, "*site row d"]) -> Float[Tensor, "*row_and_label"]:
        """How much each row is on the side of yes, in units of the fit; float64."""
        x = as_float(x)
        if x.shape[-1] != self.weight.shape[-1]:
            raise ValueError(f"x has {x.shape[-1]} dimensions, the probe {self.weight.shape[-1]}")
        if not self.labelled:
            return (x @ self.weight[..., None]).squeeze(-1) + self.bias[..., None]
        return x @ self.weight.transpose(-1, -2) + self.bias[..., None, :]

    def as_direction(self) -> Vector:
        """The weight as a vector with its site; as long as the fit made it. ValueError unless this is one probe."""
        if self.weight.numel() != self.weight.shape[-1]:
            raise ValueError(f"there are {tuple(self.weight.shape[:-1])} probes here: index one, as in probe[3]")
        return Vector(self.weight.reshape(-1), self.site)

    def __getitem__(self, index: Any) -> "Probe":
        """Some of the probes: the index is that of `bias`."""
        bias = self.bias[index]
        last = bias.ndim > 0 and self.labelled and bias.shape[-1:] == self.bias.shape[-1:]
        return replace(self, weight=self.weight[index], bias=bias, labelled=last)


@dataclass(eq=False)
class Estimator:
    """The part that all probes share. A kind of probe says how to solve one block of sites: `_solve`."""

    probe_: Probe = field(init=False, repr=False)
    doubled: ClassVar[bool] = True
    """Whether `_solve` wants x in float64; if not, float32 stays what it is."""
    numbers: ClassVar[bool] = False
    """Whether labels are numbers, and not 0 and 1."""

    def fit(self, x: Any, y: Any, *, sample_weight: Any = None, site: str | None = None) -> Self:
        """Fit one probe for each site of x and each label of y.

        x is [..., row, d]. y is [row] (the same labels at every site), [..., row], or with one more dimension for
        several labels; 0 and 1, or bool, or any number where the probe is for `numbers`. `sample_weight` has the shape
        of y, or [row]; rows of weight 0 are left out. ValueError for labels that are not binary (or not finite), for a
        label with only one value, and for x that is not finite.
        """
        x, y, weights, labelled = arranged(x, y, sample_weight, numbers=self.numbers)
        sites = x.shape[:-2]
        flat = x.reshape(-1, *x.shape[-2:])
        dtype = torch.float64 if self.doubled or x.dtype != torch.float32 else torch.float32
        y, weights = y.reshape(-1, *y.shape[-2:]), weights.reshape(-1, *weights.shape[-2:])
        found = [
            self._solve(flat[part].to(dtype), _part(y, part), _part(weights, part))
            for part in range_blocks(len(flat), flat.shape[1] * flat.shape[2])
        ]
        label = (y.shape[-1],) if labelled else ()
        weight, bias, *rest = (
            torch.cat(parts).reshape((*sites, *label, *parts[0].shape[2:])) for parts in zip(*found, strict=True)
        )
        self.probe_ = Probe(weight, bias, labelled, site)
        self._learnt(*rest)
        return self

    def _solve(
        self,
        x: Float[Tensor, "site row d"],
        y: Float[Tensor, "some row label"],
        weights: Float[Tensor, "some row label"],
    ) -> tuple[Tensor, ...]:
        """Weight [site, label, d] and bias [site, label], and what else was learnt, each [site, label, ...].

        `some` is the number of sites, or 1 where all share their labels. All float64, but for x as `doubled` says.
        """
        raise NotImplementedError

    def _learnt(self, *rest: Tensor) -> None:
        """Keep what else was learnt, now [..., (label), ...]."""

    def decision_function(self, x: Any) -> Float[Tensor, "*row_and_label"]:
        """What is positive where the probe says yes."""
        if not hasattr(self, "probe_"):
            raise ValueError(f"{type(self).__name__} is not fitted yet: call fit(x, y) first")
        return self.probe_.decision(torch.as_tensor(x))

    def predict(self, x: Any) -> Int[Tensor, "*row_and_label"]:
        """0 or 1 for each row."""
        return (self.decision_function(x) > 0).long()

    def score(self, x: Any, y: Any) -> "float | Float[Tensor, '*probe']":
        """Accuracy of each probe; a float where there is one."""
        from patchclamp.probes.measures import accuracy

        decision = self.decision_function(x)
        return single(accuracy(decision, as_labels(y, decision), dim=self._row(decision)))

    def _row(self, decision: Tensor) -> int:
        return decision.ndim - 2 if self.probe_.labelled else decision.ndim - 1


def one_hot(classes: Sequence[Any] | Tensor) -> tuple[Float[Tensor, "row label"], list[Any]]:
    """One label for each class, and their names in order.

    >>> one_hot(["cat", "dog", "cat"])
    (tensor([[1., 0.],
            [0., 1.],
            [1., 0.]]), ['cat', 'dog'])
    """
    listed = classes.tolist() if isinstance(classes, Tensor) else list(classes)
    names = sorted(set(listed))
    return torch.tensor([[float(one == name) for name in names] for one in listed]), names


def single(values: Tensor) -> "float | Tensor":
    return values.item() if values.ndim == 0 else values


def as_float(x: Any) -> Tensor:
    return torch.as_tensor(x).detach().double()


def as_labels(y: Any, decision: Tensor) -> Tensor:
    """y with the dimensions of a decision [..., row] or [..., row, label]."""
    y = torch.as_tensor(y).double().to(decision.device)
    if y.shape == decision.shape:
        return y
    try:
        return y.expand(decision.shape)
    except RuntimeError as error:
        raise ValueError(f"labels {tuple(y.shape)} do not fit decisions {tuple(decision.shape)}") from error


def range_blocks(count: int, size: int) -> list[slice]:
    """Slices of `count` items so that each holds about BLOCK numbers."""
    step = max(1, BLOCK // max(1, size))
    return [slice(first, first + step) for first in range(0, count, step)]


def _part(y: Tensor, part: slice) -> Tensor:
    return y if len(y) == 1 else y[part]


def arranged(
    x: Any, y: Any, sample_weight: Any = None, *, numbers: bool = False
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """x as a tensor [..., row, d], y and weights as float64 [..., row, label] with 1 or all sites in front, and whether
    y came with a dimension of labels.
    """
    x = torch.as_tensor(x).detach()
    if x.ndim < 2:
        raise ValueError(f"x is {tuple(x.shape)}: expected [..., row, d]")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x has entries that are not finite")
    y = torch.as_tensor(y).to(x.device)
    rows, sites = x.shape[-2], x.shape[:-2]
    labelled = y.shape != x.shape[:-1] and y.ndim > 1
    y = _of_labels(y, sites, rows, labelled, "y")
    if numbers and not bool(y.isfinite().all()):
        raise ValueError("y has entries that are not finite")
    if not numbers and not bool(((y == 0) | (y == 1)).all()):
        raise ValueError(
            "labels are 0 and 1 (or bool); several classes are several labels: one_hot(classes); numbers are read by "
            "RidgeRegression and its like"
        )
    if sample_weight is None:
        weights = torch.ones(1, rows, 1, dtype=torch.float64, device=x.device)
    else:
        given = torch.as_tensor(sample_weight).to(x.device)
        weights = _of_labels(given, sites, rows, given.shape != x.shape[:-1] and given.ndim > 1, "sample_weight")
        if not bool((weights >= 0).all()):
            raise ValueError("sample_weight has entries that are negative or not a number")
    front = torch.broadcast_shapes(y.shape[:-2], weights.shape[:-2])
    y = y.expand(*front, *y.shape[-2:])
    weights = weights.expand(*front, rows, y.shape[-1])
    there = weights > 0
    alike = y.masked_fill(~there, -torch.inf).amax(-2) <= y.masked_fill(~there, torch.inf).amin(-2)
    if bool(alike.any()):
        label = int(alike.nonzero()[0][-1])
        raise ValueError(f"label {label} has only one of its values among {rows} rows: nothing to tell apart")
    return x, y, weights, labelled


def _of_labels(y: Tensor, sites: torch.Size, rows: int, labelled: bool, name: str) -> Tensor:
    given = tuple(y.shape)
    y = y.double()
    if not labelled:
        y = y[..., None]
    while y.ndim < len(sites) + 2:
        y = y[None]
    fits = y.shape[-2] == rows and y.shape[:-2] in (sites, torch.Size([1] * len(sites)))
    if not fits:
        wanted = [(rows,), (*sites, rows), (rows, "label"), (*sites, rows, "label")]
        raise ValueError(f"{name} is {given}; with x of {(*sites, rows)} rows it is one of {wanted}")
    return y
