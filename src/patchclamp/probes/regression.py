"""Probes for numbers: how much, not whether. fit, predict and score (R²) over many sites and labels at once.

RidgeRegression(alpha=1.0).fit(x, y).score(x_test, y_test)   # y [..., row, label]: any finite numbers
SparseRegression(3).fit(x, y).support_                       # the units, in the order in which they were chosen
MLPRegression(hidden=32).fit(x, y)
"""

import difflib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.probes.estimator import Estimator, as_labels, single
from patchclamp.probes.linear import least_squares
from patchclamp.probes.logistic import deviation
from patchclamp.probes.measures import r2
from patchclamp.probes.neural import MLP
from patchclamp.probes.selectors import gathered, random, spread

SELECTORS = ("greedy", "correlation", "random")


@dataclass(eq=False)
class Regression(Estimator):
    """The part that probes for numbers share: what the probe decides is the number itself."""

    numbers: ClassVar[bool] = True

    def predict(self, x: Any) -> Float[Tensor, "*row_and_label"]:
        """The number for each row, in the units of y."""
        return self.decision_function(x)

    def score(self, x: Any, y: Any) -> "float | Float[Tensor, '*probe']":
        """R² of each probe: 1 where all is told, 0 for the mean, below 0 for worse; a float where there is one."""
        decision = self.decision_function(x)
        y, row = as_labels(y, decision), self._row(decision)
        return single(r2(decision.movedim(row, -1), y.movedim(row, -1)))


@dataclass(eq=False)
class RidgeRegression(Regression):
    """Least squares with an L2 penalty; one factorisation for each site serves all its labels.

    Minimises sum_i s_i (y_i - w . x_i - b)² + alpha |w|², scikit-learn's `Ridge(alpha)`. Without `alpha` each label
    gets the one of eleven with the least squared error of leave-one-out, which is exact and costs no further fit.
    """

    alpha: float | None = None
    alpha_: Tensor = field(init=False, repr=False)

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return least_squares(x, y, weights, self.alpha)

    def _learnt(self, *rest: Tensor) -> None:
        (self.alpha_,) = rest


@dataclass(eq=False)
class SparseRegression(Regression):
    """Ridge regression on `k` units that are chosen for each label at each site, from the rows of the fit.

    `selector` is "greedy" (one unit after the other, that which tells most of what is left: orthogonal matching
    pursuit, Pati et al. 1993), "correlation" (the k that tell most alone) or "random" (the control, by `seed`). Units
    are compared standardised; the other units have weight 0. `alpha` is that of the regression on the k units.
    """

    k: int
    selector: str = "greedy"
    alpha: float | None = None
    seed: int = 0
    support_: Int[Tensor, "*probe k"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.selector not in SELECTORS:
            near = difflib.get_close_matches(self.selector, SELECTORS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"selector={self.selector!r}: {hint}There are {', '.join(SELECTORS)}")

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        sites, _, d = x.shape
        labels = y.shape[-1]
        if not 1 <= self.k <= d:
            raise ValueError(f"k={self.k} of {d} units")
        mine, heavy = spread(y, sites), spread(weights, sites)
        if self.selector == "random":
            support = random(self.seed)(x, y, weights, self.k).topk(self.k, -1).indices
        elif self.selector == "correlation":
            support = _telling(x, y, weights).topk(self.k, -1).indices
        else:
            support = _telling(x, y, weights).argmax(-1, keepdim=True)
            while support.shape[-1] < self.k:
                part = gathered(x, support)
                w, b, _ = least_squares(part, mine, heavy, 1e-9)
                left = mine - part @ w.transpose(1, 2) - b[:, None]
                left = left[..., 0].unflatten(0, (sites, labels)).transpose(1, 2)
                telling = _telling(x, left, weights).scatter(2, support, -1.0)
                support = torch.cat([support, telling.argmax(-1, keepdim=True)], -1)
        w, b, alpha = least_squares(gathered(x, support), mine, heavy, self.alpha)
        whole = x.new_zeros(sites, labels, d).scatter(2, support, w[:, 0].unflatten(0, (sites, labels)))
        return whole, b.reshape(sites, labels), support, alpha.reshape(sites, labels)

    def _learnt(self, *rest: Tensor) -> None:
        self.support_, self.alpha_ = rest


def _telling(x: Tensor, y: Tensor, weights: Tensor) -> Float[Tensor, "site label d"]:
    """How strongly each unit goes with each label, of whatever size it is: correlation times the label's spread."""
    total = weights.sum(1, keepdim=True)
    centred = weights * (y - (weights * y).sum(1, keepdim=True) / total)
    scale = torch.cat([deviation(x, weights[..., i : i + 1]) for i in range(weights.shape[-1])], 1)
    return (centred.transpose(1, 2) @ x).abs() / scale


@dataclass(eq=False)
class MLPRegression(Regression, MLP):
    """relu(x A + a) w + b on standardised x and y, by squared error, full batch and AdamW."""

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        total = weights.sum(1, keepdim=True)
        mean = (weights * y).sum(1, keepdim=True) / total
        scale = ((weights * (y - mean) ** 2).sum(1, keepdim=True) / total).sqrt()
        out, bias, into, shift = super()._solve(x, (y - mean) / scale, weights)
        return out * scale.transpose(1, 2), bias * scale[:, 0] + mean[:, 0], into, shift

    def _loss(self, z: Tensor, y: Tensor) -> Tensor:
        return (z - y) ** 2
