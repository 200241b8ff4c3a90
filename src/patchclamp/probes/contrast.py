"""Probes without labels: what keeps the two sides of a contrast apart and consistent.

    pairs = torch.stack([x_true, x_false], -2)      # [..., row, 2, d]: "... is true" and "... is false"
    probe = CCS().fit(pairs)                        # Burns et al. 2022, contrast-consistent search
    probe = CCS(loss="midpoint", h=0.9).fit(pairs)  # midpoint-displacement, an eigenvector: no training
    probe.score_both(pairs, y)                      # without labels a direction has no sign: accuracy of both

Each side is normalised by its own mean and standard deviation, so that which side it is cannot be read off. y is 1
where the first side is right.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.probes.estimator import as_labels, single
from patchclamp.probes.measures import accuracy

Loss = Literal["ccs", "midpoint", "absolute", "root"]
LOSSES = ("ccs", "midpoint", "absolute", "root")


@dataclass(eq=False)
class CCS:
    """A direction along which the two sides of each pair are far apart and, on average, at zero.

    `loss` is what is minimised, with p the sigmoid of w . x + b, m the midpoint and d the difference of a pair:
    "ccs"       mean (p+ + p- - 1)^2 + min(p+, p-)^2, the best of `tries` starts (arXiv:2212.03827)
    "midpoint"  h E[(w.m)^2] - (1 - h) E[(w.d)^2] for unit w: the smallest eigenvector of h Cov(m) - (1 - h) Cov(d)
    "absolute"  h std|w.d| - (1 - h) E|w.d|, "root" the same with (E sqrt|w.d|)^2 for the mean
    `h` weighs consistency against distance. Without labels the sign is a convention: the largest component is positive.
    With `y` in `fit`, it is that which is right more often there, and nothing else is taken from y. `every_` are the
    directions of all starts, signs as they came.
    """

    loss: Loss = "ccs"
    h: float = 0.9
    tries: int = 10
    steps: int = 500
    learning_rate: float = 0.01
    normalise: bool = True
    seed: int = 0
    weight_: Float[Tensor, "*site d"] = field(init=False, repr=False)
    every_: Float[Tensor, "*site try d"] = field(init=False, repr=False)
    bias_: Float[Tensor, "*site"] = field(init=False, repr=False)
    loss_: Float[Tensor, "*site"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r}: expected one of {', '.join(LOSSES)}")
        if not 0 <= self.h <= 1:
            raise ValueError(f"h={self.h}: expected a share between 0 and 1")

    def fit(self, pairs: Any, y: Any = None) -> Self:
        """Find the direction of each site. `pairs` is [..., row, 2, d]; ValueError otherwise."""
        pairs = torch.as_tensor(pairs).detach().double()
        if pairs.ndim < 3 or pairs.shape[-2] != 2:
            raise ValueError(f"pairs are {tuple(pairs.shape)}: expected [..., row, 2, d]")
        sites = pairs.shape[:-3]
        flat = pairs.reshape(-1, *pairs.shape[-3:])
        self._centre = flat.mean(1, keepdim=True)
        self._scale = torch.ones_like(self._centre)
        if self.normalise:
            self._scale = flat.std(1, correction=0, keepdim=True).clamp_min(1e-9)
        x = (flat - self._centre) / self._scale
        if self.loss == "midpoint":
            vectors = _eigenvectors(x, self.h)
            w, b, found = vectors, x.new_zeros(len(x)), _displacement(x, vectors[..., None], self.h)[:, 0]
            every = vectors[:, None]
        else:
            w, b, found, every = self._descend(x)
        sign = w.gather(1, w.abs().argmax(1, keepdim=True)).sign()[:, 0]
        self._sites = sites
        self.every_ = every.reshape((*sites, *every.shape[1:]))
        self._keep(w * sign[:, None], b * sign, found)
        if y is not None:
            y = as_labels(y, self.decision_function(pairs))
            worse = accuracy(self.decision_function(pairs), y) < 0.5
            turn = torch.where(worse, -1.0, 1.0).reshape(-1)
            self._keep(w * (sign * turn)[:, None], b * sign * turn, found)
        return self

    def _keep(self, w: Tensor, b: Tensor, found: Tensor) -> None:
        self.weight_, self.bias_ = w.reshape((*self._sites, -1)), b.reshape(self._sites)
        self.loss_ = found.reshape(self._sites)

    def decision_function(self, pairs: Any) -> Float[Tensor, "*site row"]:
        """Positive where the first side is held right: the mean of p+ and 1 - p-, less a half; or w . d."""
        if not hasattr(self, "weight_"):
            raise ValueError("CCS is not fitted yet: call fit(pairs) first")
        pairs = torch.as_tensor(pairs).double()
        centre, scale = (
            t.reshape((*self._sites, 1, 2, -1)) if t.numel() > 2 else t for t in (self._centre, self._scale)
        )
        x = (pairs - centre) / scale
        z = (x * self.weight_[..., None, None, :]).sum(-1) + self.bias_[..., None, None]
        if self.loss == "ccs":
            p = z.sigmoid()
            return (p[..., 0] - p[..., 1]) / 2
        return z[..., 0] - z[..., 1]

    def predict(self, pairs: Any) -> Int[Tensor, "*site row"]:
        """1 where the first side is held right."""
        return (self.decision_function(pairs) > 0).long()

    def score(self, pairs: Any, y: Any) -> "float | Tensor":
        """Accuracy with the sign that `fit` gave."""
        decision = self.decision_function(pairs)
        return single(accuracy(decision, as_labels(y, decision)))

    def score_both(self, pairs: Any, y: Any) -> "tuple[float | Tensor, float | Tensor]":
        """Accuracy with the sign that `fit` gave, and with the other."""
        decision = self.decision_function(pairs)
        labels = as_labels(y, decision)
        return single(accuracy(decision, labels)), single(accuracy(-decision, labels))

    def _descend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Adam on all starts of all sites at once; the best start of each site, and the directions of all."""
        sites, _, _, d = x.shape
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn(sites, d, self.tries, generator=generator, dtype=torch.float64)
        w = (start / start.norm(dim=1, keepdim=True)).to(x.device)
        b = x.new_zeros(sites, 1, self.tries)
        with torch.enable_grad():
            parameters = [w.requires_grad_(), b.requires_grad_()]
            optimiser = torch.optim.Adam(parameters, lr=self.learning_rate)
            for _ in range(self.steps):
                optimiser.zero_grad()
                self._losses(x, w, b).sum().backward()
                optimiser.step()
            losses = self._losses(x, w, b).detach()
        best = losses.argmin(1)
        w, b = w.detach(), b.detach()[:, 0]
        if self.loss != "ccs":
            w, b = w / w.norm(dim=1, keepdim=True), torch.zeros_like(b)
        index = torch.arange(sites, device=x.device)
        return w[index, :, best], b[index, best], losses[index, best], w.transpose(1, 2)

    def _losses(self, x: Tensor, w: Tensor, b: Tensor) -> Float[Tensor, "site try"]:
        if self.loss == "ccs":
            p = (x[:, :, 0] @ w + b).sigmoid(), (x[:, :, 1] @ w + b).sigmoid()
            return ((p[0] + p[1] - 1) ** 2 + torch.minimum(*p) ** 2).mean(1)
        unit = w / w.norm(dim=1, keepdim=True)
        if self.loss == "midpoint":
            return _displacement(x, unit, self.h)
        apart = ((x[:, :, 0] - x[:, :, 1]) @ unit).abs()
        size = apart.mean(1) if self.loss == "absolute" else (apart + 1e-9).sqrt().mean(1) ** 2
        return self.h * apart.std(1, correction=0) - (1 - self.h) * size


def descended(probe: CCS, pairs: Tensor) -> Float[Tensor, "*site d"]:
    """The direction that gradient descent on the midpoint-displacement loss finds; a check of the eigenvector."""
    fitted = replace(probe, loss="midpoint").fit(pairs)
    flat = pairs.double().reshape(-1, *pairs.shape[-3:])
    w, _, _, _ = fitted._descend((flat - fitted._centre) / fitted._scale)
    return w.reshape(fitted.weight_.shape)


def agreeing_h(pairs: Tensor, directions: Float[Tensor, "try d"], grid: Tensor | None = None) -> tuple[float, float]:
    """The h at which midpoint-displacement is most like CCS: the largest mean |cosine| with `directions`, and where.

    Looks at [0.9, 0.999] unless told a grid, and at no label.
    """
    grid = torch.linspace(0.9, 0.999, 34) if grid is None else grid
    unit = directions.double() / directions.double().norm(dim=-1, keepdim=True)
    found = [float((unit @ CCS(loss="midpoint", h=float(h)).fit(pairs).weight_).abs().mean()) for h in grid]
    best = max(range(len(found)), key=found.__getitem__)
    return float(grid[best]), found[best]


def accurate_h(pairs: Tensor, y: Tensor, low: float = 0.0, high: float = 0.99, refinements: int = 2) -> float:
    """The h with the best accuracy on labelled pairs: eleven values, and eleven about the best of them, twice.

    This uses labels, and so is no longer unsupervised.
    """
    best = low
    for _ in range(refinements + 1):
        grid = torch.linspace(low, high, 11).tolist()
        scores = [float(CCS(loss="midpoint", h=h).fit(pairs, y).score(pairs, y)) for h in grid]
        place = max(range(11), key=scores.__getitem__)
        best, step = grid[place], grid[1] - grid[0]
        low, high = max(0.0, best - step), min(1.0, best + step)
    return best


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    middle, apart = (x[:, :, 0] + x[:, :, 1]) / 2, x[:, :, 0] - x[:, :, 1]
    return tuple(t.transpose(1, 2) @ t / t.shape[1] for t in (middle, apart))  # type: ignore[return-value]


def _eigenvectors(x: Tensor, h: float) -> Float[Tensor, "site d"]:
    middle, apart = _moments(x)
    return torch.linalg.eigh(h * middle - (1 - h) * apart).eigenvectors[..., 0]


def _displacement(x: Tensor, w: Float[Tensor, "site d try"], h: float) -> Float[Tensor, "site try"]:
    middle, apart = _moments(x)
    return (w * ((h * middle - (1 - h) * apart) @ w)).sum(1)
