"""Mean, variance, norms and covariance of activations in one pass, mergeable: units give moments, a store adds them.

    moments = Moments.of(rows)                     # of one piece, [n, d]
    whole = merged([moments, other])               # in the order given, so that the bits are the same every time
    Statistics.of(whole).norm_quantile(0.5)

Sums are float64 and centred before they are squared (Chan, Golub and LeVeque, 1983). Norms are counted in bins whose
edges grow by 0.9 %, so that quantiles of any number of rows come out of one pass, to that precision.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BINS = 4096
_LOW, _HIGH = -8.0, 8.0  # powers of ten that the bins span; the first holds zeros and all that is smaller


@dataclass(frozen=True, eq=False)
class Moments:
    """What is summed of some rows: how many, their mean, their squared distance from it, and their norms by bin."""

    count: int
    mean: Float[Tensor, "d"]
    scatter: Float[Tensor, "d"]
    norm_mean: float
    norm_scatter: float
    norms: Int[Tensor, "bin"]

    @classmethod
    def of(cls, rows: Float[Tensor, "row d"]) -> "Moments":
        """Of a piece, in float64, a thousand rows at a time."""
        return merged([cls._of(part) for part in rows.split(1024)]) if len(rows) else cls.none(rows.shape[1])

    @classmethod
    def none(cls, d: int) -> "Moments":
        """Of no rows."""
        zeros = torch.zeros(d, dtype=torch.float64)
        return cls(0, zeros, zeros, 0.0, 0.0, torch.zeros(_BINS, dtype=torch.int64))

    @classmethod
    def _of(cls, rows: Tensor) -> "Moments":
        x = rows.detach().cpu().double()
        mean = x.mean(0)
        norms = x.norm(dim=1)
        place = (norms.clamp_min(10**_LOW).log10() - _LOW) / (_HIGH - _LOW) * _BINS
        bins = torch.bincount(place.long().clamp(0, _BINS - 1), minlength=_BINS)
        scatter = (x - mean).square().sum(0)
        return cls(len(x), mean, scatter, float(norms.mean()), float((norms - norms.mean()).square().sum()), bins)

    def to_tensors(self, prefix: str) -> dict[str, Tensor]:
        """As tensors, for a file."""
        numbers = torch.tensor([self.count, self.norm_mean, self.norm_scatter], dtype=torch.float64)
        own = {"mean": self.mean, "scatter": self.scatter, "norms": self.norms, "numbers": numbers}
        return {f"{prefix}/{name}": tensor for name, tensor in own.items()}

    @classmethod
    def from_tensors(cls, prefix: str, tensors: Mapping[str, Tensor]) -> "Moments":
        """What `to_tensors` wrote."""
        mean, scatter, norms, numbers = (tensors[f"{prefix}/{n}"] for n in ("mean", "scatter", "norms", "numbers"))
        count, norm_mean, norm_scatter = numbers.tolist()
        return cls(int(count), mean, scatter, norm_mean, norm_scatter, norms)


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    whole = parts[0]
    for part in parts[1:]:
        n = whole.count + part.count
        if part.count == 0 or n == 0:
            continue
        share = part.count / n
        step, norm_step = part.mean - whole.mean, part.norm_mean - whole.norm_mean
        between = whole.count * share
        whole = Moments(
            n,
            whole.mean + step * share,
            whole.scatter + part.scatter + step.square() * between,
            whole.norm_mean + norm_step * share,
            whole.norm_scatter + part.norm_scatter + norm_step**2 * between,
            whole.norms + part.norms,
        )
    return whole


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of the rows of a site: `count`, mean and variance of each dimension, and the norms of the rows.

    `covariance` is there where it was asked for. Variances are of the population (divided by n).
    """

    count: int
    mean: Float[Tensor, "d"]
    variance: Float[Tensor, "d"]
    norm_mean: float
    norm_std: float
    norms: Int[Tensor, "bin"]
    covariance: Float[Tensor, "d d"] | None = None

    @classmethod
    def of(cls, moments: Moments) -> "Statistics":
        """From moments; ValueError where there are no rows."""
        n = moments.count
        if n == 0:
            raise ValueError("statistics of no rows")
        std = math.sqrt(moments.norm_scatter / n)
        return cls(n, moments.mean, moments.scatter / n, moments.norm_mean, std, moments.norms)

    @property
    def std(self) -> Float[Tensor, "d"]:
        """The standard deviation of each dimension."""
        return self.variance.sqrt()

    @property
    def total_variance(self) -> float:
        """The mean squared distance from the mean: what a fraction of variance unexplained is a fraction of."""
        return float(self.variance.sum())

    def norm_quantile(self, q: float) -> float:
        """The Euclidean norm that a share `q` of the rows does not exceed, to one per cent."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is between 0 and 1, not {q}")
        place = int(torch.searchsorted(self.norms.cumsum(0), max(1, math.ceil(q * self.count))))
        return 10 ** (_LOW + (place + 0.5) * (_HIGH - _LOW) / _BINS) if place else 0.0

    def with_covariance(self, covariance: Float[Tensor, "d d"]) -> "Statistics":
        """The same with a covariance."""
        return replace(self, covariance=covariance)
