"""Probes on the latents of a dictionary: which few latents know a label, and what they would say together.

    probe = OnLatents(dictionary, k=16).fit(x, y)
    probe.latents_                             # [..., 16]: latents of the dictionary, the most telling first

Kantamneni et al. 2025 (arXiv:2502.16681): latents ranked by the difference of their means, each divided by its mean
where it is active, then logistic regression on the first k.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries import Dictionary
from patchclamp.probes.estimator import Estimator, Vector
from patchclamp.probes.sparse import KSparse


@dataclass(eq=False)
class OnLatents(Estimator):
    """A k-sparse probe of what a dictionary makes of x.

    `binary` reads only whether latents are active. Latents that are active in no row of the fit are left out; `probe_`
    is over all latents of the dictionary.
    """

    dictionary: Dictionary
    k: int = 16
    selector: str = "mean"
    C: float = 1.0
    binary: bool = False
    latents_: Tensor = field(init=False, repr=False)

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        latents = self._latents(x).double()
        active = latents != 0
        size = latents.sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp_min(1)
        size = torch.where(size != 0, size, 1.0)
        latents = latents / size
        used = active.any(1).any(0).nonzero()[:, 0]
        if len(used) == 0:
            raise ValueError("no latent of the dictionary is active in any row: does it belong to this site?")
        inner = KSparse(min(self.k, len(used)), selector=self.selector, C=self.C, balanced=False, standardise=False)
        w, b, support, _ = inner._solve(latents[..., used], y, weights)
        whole = w.new_zeros(*w.shape[:2], self.dictionary.width)
        whole[..., used] = w / size[..., used]
        return whole, b, used[support]

    def _learnt(self, *rest: Tensor) -> None:
        (self.latents_,) = rest

    def _latents(self, x: Tensor) -> Float[Tensor, "*row width"]:
        dense = self.dictionary.encode(x.to(self.dictionary.W_enc.dtype)).dense()
        return (dense != 0).to(dense.dtype) if self.binary else dense

    def decision_function(self, x: Any) -> Float[Tensor, "*row_and_label"]:
        """What is positive where the probe says yes."""
        if not hasattr(self, "probe_"):
            raise ValueError("OnLatents is not fitted yet: call fit(x, y) first")
        return self.probe_.decision(self._latents(torch.as_tensor(x)))

    def as_direction(self) -> Vector:
        """The decoder's directions of its latents, by their weights: what it would write into what the probe reads."""
        weight, site = self.probe_.as_direction()
        return Vector(weight @ self.dictionary.W_dec.double(), site)
