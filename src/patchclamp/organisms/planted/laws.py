"""How large a coefficient is when its feature fires: laws as quantile functions, which turn a uniform number into it.

Uniform(0.5, 1.5).quantile(u)
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class Law(Protocol):
    """A law of positive numbers; a class of your own needs these two."""

    @property
    def mean(self) -> float: ...

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]: ...


@dataclass(frozen=True)
class Constant:
    """Always `value`.

    >>> Constant(2.0).quantile(torch.tensor([0.0, 0.5]))
    tensor([2., 2.])
    """

    value: float = 1.0

    @property
    def mean(self) -> float:
        return self.value

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.full_like(u, self.value)


@dataclass(frozen=True)
class Uniform:
    """Uniform between `low` and `high`.

    >>> Uniform(0.5, 1.5).quantile(torch.tensor([0.0, 0.25]))
    tensor([0.5000, 0.7500])
    """

    low: float = 0.5
    high: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"Uniform({self.low}, {self.high}): coefficients are from low to high, and not negative")

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class Exponential:
    """Exponential with this `mean`: many weak ones, few strong.

    >>> round(float(Exponential(2.0).quantile(torch.tensor(0.5))), 4)  # 2 ln 2
    1.3863
    """

    mean: float = 1.0

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -self.mean * torch.log1p(-u)


@dataclass(frozen=True)
class HalfNormal:
    """The absolute value of a normal number of standard deviation `scale`.

    >>> round(float(HalfNormal(1.0).quantile(torch.tensor(0.6827))), 2)
    1.0
    """

    scale: float = 1.0

    @property
    def mean(self) -> float:
        return self.scale * (2 / torch.pi) ** 0.5

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.scale * 2**0.5 * torch.erfinv(u)
