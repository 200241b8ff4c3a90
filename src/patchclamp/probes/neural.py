"""Probes that are not linear, or that read several positions: an MLP, attention over positions, nearest neighbours.

MLP(hidden=32).fit(x, y)                   # one hidden layer for each label at each site, trained together
AttentionPooled().fit(x, y, mask=mask)     # x [..., row, pos, d]: which positions to read is learnt too
"""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from patchclamp.probes.estimator import Estimator, Probe, arranged, as_float, as_labels, single
from patchclamp.probes.linear import means
from patchclamp.probes.logistic import Logistic, deviation
from patchclamp.probes.measures import accuracy


def _trained(losses: Any, parameters: list[Tensor], steps: int, rate: float, decay: float) -> None:
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_()
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            optimiser.zero_grad()
            losses().sum().backward()
            optimiser.step()
            schedule.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


@dataclass(eq=False)
class MLP(Estimator):
    """relu(x A + a) w + b on standardised x, by full-batch AdamW. `probe_` is its last layer, on the hidden units."""

    hidden: int = 32
    decay: float = 0.1
    steps: int = 200
    learning_rate: float = 0.01
    seed: int = 0
    first_: tuple[Tensor, ...] = field(init=False, repr=False)

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        sites, _, d = x.shape
        labels = y.shape[-1]
        shared = weights.mean(-1, keepdim=True)
        centre = (shared * x).sum(1, keepdim=True) / shared.sum(1, keepdim=True)
        scale = deviation(x, shared)
        rows = ((x - centre) / scale).float()
        y, weights = y.float(), (weights / weights.sum(1, keepdim=True)).float()
        generator = torch.Generator().manual_seed(self.seed)

        def drawn(*shape: int, size: float) -> Tensor:  # every site starts alike, whatever block it is in
            return (size * torch.randn(*shape, generator=generator)).to(rows).expand(sites, *shape).clone()

        into = drawn(labels, d, self.hidden, size=(2 / d) ** 0.5)
        shift = rows.new_zeros(sites, labels, 1, self.hidden)
        out = drawn(labels, self.hidden, size=self.hidden**-0.5)
        bias = rows.new_zeros(sites, labels)

        def losses() -> Tensor:
            hidden = (rows[:, None] @ into + shift).relu()
            z = (hidden @ out[..., None]).squeeze(-1).transpose(1, 2) + bias[:, None]
            return (weights * self._loss(z, y)).sum((0, 1))

        _trained(losses, [into, shift, out, bias], self.steps, self.learning_rate, self.decay)
        scaled = into.double() / scale.transpose(1, 2)[:, None]
        offset = shift.double()[:, :, 0] - (centre[:, None] @ scaled)[:, :, 0]
        return out.double(), bias.double(), scaled, offset

    def _loss(self, z: Tensor, y: Tensor) -> Tensor:
        return softplus(z * (1 - 2 * y))

    def _learnt(self, *rest: Tensor) -> None:
        self.first_ = rest

    def decision_function(self, x: Any) -> Float[Tensor, "*row_and_label"]:
        """What is positive where the probe says yes."""
        if not hasattr(self, "probe_"):
            raise ValueError(f"{type(self).__name__} is not fitted yet: call fit(x, y) first")
        x, (into, shift) = as_float(x), self.first_
        labelled = self.probe_.labelled
        hidden = ((x[..., None, :, :] if labelled else x) @ into + shift[..., None, :]).relu()
        z = (hidden @ self.probe_.weight[..., None]).squeeze(-1) + self.probe_.bias[..., None]
        return z.transpose(-1, -2) if labelled else z


@dataclass(eq=False)
class AttentionPooled:
    """sum over positions of softmax(q . x) (w . x) + b, by full-batch AdamW; q starts at 0, which is the mean.

    Each site and label has its own q and w. x is [..., row, pos, d], `mask` [row, pos] says which positions are there.
    """

    decay: float = 0.1
    steps: int = 200
    learning_rate: float = 0.02
    query_: Tensor = field(init=False, repr=False)
    probe_: Probe = field(init=False, repr=False)

    def fit(self, x: Any, y: Any, *, mask: Any = None, site: str | None = None) -> Self:
        """Labels are those of `Estimator.fit`; ValueError for x without positions."""
        x = torch.as_tensor(x).detach()
        if x.ndim < 3:
            raise ValueError(f"x is {tuple(x.shape)}: expected [..., row, pos, d]")
        mask = self._mask(x, mask)
        total = mask.double()[..., None].sum((-3, -2), keepdim=True)
        centre = (x.double() * mask[..., None]).sum((-3, -2), keepdim=True) / total
        variance = ((x.double() - centre) ** 2 * mask[..., None]).sum((-3, -2), keepdim=True) / total
        scale = variance.sqrt().clamp_min(1e-9)
        pooled = (x.double() * mask[..., None]).sum(-2) / mask.sum(-1, keepdim=True)
        pooled, y, weights, labelled = arranged(pooled, y)
        sites, d, labels = x.shape[:-3], x.shape[-1], y.shape[-1]
        rows = ((x.double() - centre) / scale).float()
        y, weights = y.float(), (weights / weights.sum(-2, keepdim=True)).float()
        # A start that the mean already reads.
        start = ((pooled - centre[..., 0, :, :]) / scale[..., 0, :, :]).reshape(-1, *pooled.shape[-2:])
        shown = (t.reshape(-1, *t.shape[-2:]).double() for t in (y, weights))
        yes, no, _ = means(start, *shown)
        query = rows.new_zeros(*sites, d, labels)
        value = (yes - no).float().transpose(-1, -2).reshape(*sites, d, labels).clone()
        bias = rows.new_zeros(*sites, labels)

        def losses() -> Tensor:
            z = _attended(rows, mask, query, value) + bias[..., None, :]
            return (weights * softplus(z * (1 - 2 * y))).sum()

        _trained(losses, [query, value, bias], self.steps, self.learning_rate, self.decay)
        self.query_ = query.double() / scale[..., 0, 0, :, None]
        w = value.double() / scale[..., 0, 0, :, None]
        b = bias.double() - (centre[..., 0, 0, :, None] * w).sum(-2)
        w = w.transpose(-1, -2)
        self.probe_ = Probe(w if labelled else w.squeeze(-2), b if labelled else b.squeeze(-1), labelled, site)
        return self

    def _mask(self, x: Tensor, mask: Any) -> Tensor:
        mask = torch.ones(x.shape[-3:-1], dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
        if mask.shape != x.shape[-3:-1] or not bool(mask.any(-1).all()):
            raise ValueError(f"mask is {tuple(mask.shape)}: expected {tuple(x.shape[-3:-1])}, a position in every row")
        return mask.to(x.device)

    def decision_function(self, x: Any, mask: Any = None) -> Float[Tensor, "*row_and_label"]:
        """What is positive where the probe says yes."""
        if not hasattr(self, "probe_"):
            raise ValueError("AttentionPooled is not fitted yet: call fit(x, y) first")
        x = as_float(x)
        labelled, w = self.probe_.labelled, self.probe_.weight
        value = w.transpose(-1, -2) if labelled else w[..., None]
        z = _attended(x, self._mask(x, mask), self.query_, value)
        return z + self.probe_.bias[..., None, :] if labelled else z.squeeze(-1) + self.probe_.bias[..., None]

    def predict(self, x: Any, mask: Any = None) -> Int[Tensor, "*row_and_label"]:
        """0 or 1 for each row."""
        return (self.decision_function(x, mask) > 0).long()

    def score(self, x: Any, y: Any, mask: Any = None) -> "float | Tensor":
        """Accuracy of each probe; a float where there is one."""
        decision = self.decision_function(x, mask)
        return single(accuracy(decision, as_labels(y, decision), dim=decision.ndim - 1 - int(self.probe_.labelled)))


def _attended(x: Tensor, mask: Tensor, query: Tensor, value: Tensor) -> Float[Tensor, "*site row label"]:
    scores = (x @ query[..., None, :, :]).masked_fill(~mask[..., None], -torch.inf)
    return (scores.softmax(-2) * (x @ value[..., None, :, :])).sum(-2)


@dataclass(eq=False)
class PCALogistic(Estimator):
    """Logistic regression on the first principal components of the rows: a probe in the units of x."""

    components: int = 16
    C: float = 1.0

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        shared = weights.mean(-1, keepdim=True)
        centre = (shared * x).sum(1, keepdim=True) / shared.sum(1, keepdim=True)
        rows = (x - centre) * shared.sqrt()
        _, _, axes = torch.linalg.svd(rows, full_matrices=False)
        axes = axes[:, : min(self.components, axes.shape[1])].transpose(1, 2)
        w, b = Logistic(C=self.C, standardise=True)._solve((x - centre) @ axes, y, weights)
        w = w @ axes.transpose(1, 2)
        return w, b - (w * centre).sum(-1)


@dataclass(eq=False)
class NearestNeighbours(Estimator):
    """The share of yes among the `k` nearest rows of the fit, less a half, on standardised x."""

    k: int = 8
    rows_: tuple[Tensor, ...] = field(init=False, repr=False)

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        labels = y.shape[-1]
        scale = deviation(x, weights.mean(-1, keepdim=True))
        nothing = x.new_zeros(len(x), labels, 1)
        ours, heavy = (t.expand(len(x), -1, -1).transpose(1, 2) for t in (y, weights))
        return (
            nothing,
            nothing[..., 0],
            (x / scale)[:, None].expand(-1, labels, -1, -1),
            scale.expand(-1, labels, -1),
            ours,
            heavy,
        )

    def _learnt(self, *rest: Tensor) -> None:
        self.rows_ = rest

    def decision_function(self, x: Any) -> Float[Tensor, "*row_and_label"]:
        """What is positive where most neighbours are yes."""
        if not hasattr(self, "probe_"):
            raise ValueError("NearestNeighbours is not fitted yet: call fit(x, y) first")
        rows, scale, y, weights = self.rows_
        x, labelled = as_float(x), self.probe_.labelled
        apart = torch.cdist((x[..., None, :, :] if labelled else x) / scale[..., None, :], rows)
        apart = apart.masked_fill((weights == 0)[..., None, :], torch.inf)
        near = apart.topk(min(self.k, apart.shape[-1]), largest=False).indices
        z = y[..., None, :].expand(apart.shape).gather(-1, near).mean(-1) - 0.5
        return z.transpose(-1, -2) if labelled else z
