"""The best k units for a label, exactly where that is feasible, and otherwise how far from the best at most.

    best = best_subset(x, y, weights, k=3)     # .support, .objective, .bound, .gap

What is minimised over supports is the squared error of ridge regression on the labels -1 and 1, with both values
weighing alike: its minimum for a support has a closed form in k numbers. Greedy swaps find a support, branch and bound
shows that none is better: using more units never costs, so that a part of the tree whose union of units does no better
than what is known holds nothing. Gurnee et al. 2023 (arXiv:2305.01610) solve the same with a hinge loss.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.probes.logistic import balance, deviation

RIDGE = 1e-3
"""The penalty, as a share of the rows' weight, on standardised units."""


@dataclass(frozen=True)
class Subset:
    """A support (in ascending order), its objective, and a bound below which no support of as many units can be.

    Objective and bound are shares of the label's variance: 1 is as good as no units. `searched` units were looked at;
    bound and gap are about supports among those.
    """

    support: tuple[int, ...]
    objective: float
    bound: float
    searched: int

    @property
    def gap(self) -> float:
        """How much lower the objective might be at most; 0 where the support is proven best."""
        return max(0.0, self.objective - self.bound)


def best_subset(
    x: Float[Tensor, "row d"],
    y: Float[Tensor, " row"],
    weights: Float[Tensor, " row"],
    k: int,
    *,
    among: int = 50,
    nodes: int = 10_000,
) -> Subset:
    """The best `k` units of the `among` with the largest F, or of all where there are no more.

    After `nodes` nodes of the tree the search ends with a gap. ValueError for k below 1 or above d.
    """
    from patchclamp.probes.selectors import f_statistic

    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k={k} of {x.shape[1]} units")
    x, y, weights = x.double(), y.double()[:, None], weights.double()[:, None]
    candidates = torch.arange(x.shape[1])
    if x.shape[1] > max(among, k):
        candidates = f_statistic(x[None], y[None], weights[None])[0, 0].topk(max(among, k)).indices.cpu()
    problem = _Quadratic.of(x[:, candidates], y, weights)
    best, value = _swapped(problem, k)
    if math.comb(len(candidates), k) <= 2 * nodes:
        best, value = _all(problem, k)
        bound = value
    else:
        best, value, bound = _branch_and_bound(problem, k, best, value, nodes)
    support = sorted(int(candidates[i]) for i in best)
    return Subset(tuple(support), value, bound, len(candidates))


@dataclass(frozen=True)
class _Quadratic:
    """Objective of a support S: 1 - c_S . A_SS^-1 c_S, A a correlation matrix with the ridge on its diagonal."""

    gram: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weights: Tensor) -> "_Quadratic":
        weights = balance(y[None], weights[None])[0]
        weights = weights / weights.sum()
        x = x - (weights * x).sum(0)
        x = x / deviation(x[None], weights[None])[0]
        target = 2 * y - 1  # of mean 0 and variance 1, for both values weigh alike
        gram = (weights * x).T @ x
        gram.diagonal().add_(RIDGE)
        return cls(gram.cpu().numpy(), ((weights * x).T @ target)[:, 0].cpu().numpy())

    def __call__(self, support: "list[int] | tuple[int, ...] | np.ndarray") -> float:
        support = np.asarray(support, dtype=int)
        if not len(support):
            return 1.0
        cross = self.cross[support]
        return float(1 - cross @ np.linalg.solve(self.gram[np.ix_(support, support)], cross))

    def several(self, supports: np.ndarray) -> np.ndarray:
        """Of many supports [n, k] at once."""
        gram, cross = self.gram[supports[:, :, None], supports[:, None]], self.cross[supports]
        return 1 - (cross * np.linalg.solve(gram, cross[..., None])[..., 0]).sum(-1)


def _all(problem: _Quadratic, k: int) -> tuple[list[int], float]:
    supports = np.array(list(itertools.combinations(range(len(problem.cross)), k)))
    values = np.concatenate([problem.several(part) for part in np.array_split(supports, 1 + len(supports) // 10_000)])
    return list(supports[values.argmin()]), float(values.min())


def _swapped(problem: _Quadratic, k: int) -> tuple[list[int], float]:
    """Units added one by one, each the best, and then exchanged as long as an exchange helps."""
    support: list[int] = []
    for _ in range(k):
        free = [i for i in range(len(problem.cross)) if i not in support]
        support.append(free[int(problem.several(np.array([[*support, i] for i in free])).argmin())])
    value = problem(support)
    while True:
        free = [i for i in range(len(problem.cross)) if i not in support]
        trials = np.array([[*support[:j], i, *support[j + 1 :]] for j in range(k) for i in free], dtype=int)
        if not len(trials):
            return support, value
        values = problem.several(trials)
        if values.min() >= value - 1e-12:
            return support, value
        support, value = list(trials[values.argmin()]), float(values.min())


def _branch_and_bound(
    problem: _Quadratic, k: int, best: list[int], value: float, nodes: int
) -> tuple[list[int], float, float]:
    """Depth first, the most useful unit taken before it is left out; the bound is that of what was not looked at."""
    order = sorted(range(len(problem.cross)), key=lambda i: -abs(problem.cross[i]))
    open_: list[tuple[float, list[int], list[int]]] = [(problem(order), [], order)]
    for _ in range(nodes):
        if not open_:
            return best, value, value
        bound, taken, free = open_.pop()
        if bound >= value - 1e-12:
            continue
        if len(taken) + len(free) == k or len(taken) == k:
            support = taken + free if len(taken) < k else taken
            found = problem(support)
            if found < value:
                best, value = support, found
            continue
        unit, rest = free[0], free[1:]
        without = problem(taken + rest)
        open_.append((without, taken, rest))
        open_.append((bound, [*taken, unit], rest))
    return best, value, min([value, *(bound for bound, _, _ in open_)])
