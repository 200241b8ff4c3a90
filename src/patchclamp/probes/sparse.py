"""k-sparse probes: a label read from k units alone, which the fit chooses.

    probe = KSparse(3, selector="f").fit(x, y)
    probe.support_                             # [..., 3]: the units, the most telling first
    KSparse(3, selector="optimal").fit(x, y).gap_      # how far from the best support of three it can be

Gurnee et al. 2023, Finding Neurons in a Haystack (arXiv:2305.01610).
"""

import difflib
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from patchclamp.probes.best_subset import best_subset
from patchclamp.probes.estimator import Estimator, single
from patchclamp.probes.logistic import Logistic
from patchclamp.probes.selectors import SELECTORS, f_statistic, gathered, random, spread

KINDS = (*SELECTORS, "optimal", "random")


@dataclass(eq=False)
class KSparse(Estimator):
    """Logistic regression on `k` units that `selector` chooses for each label at each site, from the rows of the fit.

    `selector` is "mean" (difference of means), "f", "mutual_information", "l1", "adaptive" (thresholding), "optimal"
    (best subset) or "random" (the control). The other units have weight 0. `C`, `balanced` and `standardise` are those
    of the regression; `seed` is for random units.
    """

    k: int
    selector: str = "mean"
    C: float = 1.0
    balanced: bool = True
    standardise: bool = True
    seed: int = 0
    support_: Int[Tensor, "*probe k"] = field(init=False, repr=False)
    gap_: Tensor | float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.selector not in KINDS:
            near = difflib.get_close_matches(self.selector, KINDS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"selector={self.selector!r}: {hint}There are {', '.join(KINDS)}")

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        sites, _, d = x.shape
        labels = y.shape[-1]
        if not 1 <= self.k <= d:
            raise ValueError(f"k={self.k} of {d} units")
        gap = x.new_full((sites, labels), torch.nan)
        if self.selector == "optimal":
            mine, heavy = y.expand(sites, -1, -1), weights.expand(sites, -1, -1)
            pairs = [(i, j) for i in range(sites) for j in range(labels)]
            found = [best_subset(x[i], mine[i, :, j], heavy[i, :, j], self.k) for i, j in pairs]
            support = torch.tensor([one.support for one in found], device=x.device).reshape(sites, labels, self.k)
            gap = x.new_tensor([one.gap for one in found]).reshape(sites, labels)
            order = f_statistic(x, y, weights).gather(2, support).argsort(dim=-1, descending=True)
            support = support.gather(2, order)
        else:
            scores = (random(self.seed) if self.selector == "random" else SELECTORS[self.selector])(
                x, y, weights, self.k
            )
            support = scores.topk(self.k, -1).indices
        inner = Logistic(C=self.C, balanced=self.balanced, standardise=self.standardise)
        w, b = inner._solve(gathered(x, support), spread(y, sites), spread(weights, sites))
        whole = x.new_zeros(sites, labels, d).scatter(2, support, w[:, 0].unflatten(0, (sites, labels)))
        return whole, b.reshape(sites, labels), support, gap

    def _learnt(self, *rest: Tensor) -> None:
        support, gap = rest
        self.support_, self.gap_ = support, single(gap)
