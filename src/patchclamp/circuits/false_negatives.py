"""What may have been missed: an upper bound on the effect of every edge that was not checked exactly.

    bound = circuits.false_negative_bound(model, task, graph, verified=scores.values.abs() > 0.1)
    bound.most                                       # with 99 % confidence no unchecked edge does more, if effects add

Random subsets of the unverified edges are cut, exactly. An edge's effect is the difference of the mean between the
draws that cut it and those that do not, with Welch's interval around it (the subset diagnostic of AtP*, Kramár et al.
2024, arXiv:2403.00745). The bound is that of effects which add up: where edges need each other, each is seen only in
the draws that spare the others, so that small subsets say more; where two stand in for each other, neither is seen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.circuits.graph import Graph, GraphError
from patchclamp.circuits.measures import measure
from patchclamp.circuits.wiring import Ablation
from patchclamp.model import Model
from patchclamp.tasks import Task


@dataclass(frozen=True, eq=False)
class Bound:
    """For each unverified edge the estimate of its effect and the upper end of its size's interval; else 0."""

    graph: Graph
    estimate: Float[Tensor, "edge *place"]
    upper: Float[Tensor, "edge *place"]
    confidence: float
    samples: int

    @property
    def most(self) -> float:
        """The largest effect that an unverified edge may have."""
        return float(self.upper.max())


def false_negative_bound(
    model: Model,
    task: Task,
    graph: Graph,
    verified: Bool[Tensor, "edge *place"],
    *,
    samples: int = 128,
    share: float = 0.1,
    confidence: float = 0.99,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 32,
    seed: int = 0,
) -> Bound:
    """Cut `samples` random subsets of the unverified edges, each edge with the chance `share`; in the metric's units.

    An edge that fewer than two draws cut, or spare, has no bound: it is infinite.
    """
    from scipy.stats import t as student

    if samples < 8 or not 0 < confidence < 1 or not 0 < share < 1:
        raise GraphError(f"samples={samples}, share={share}, confidence={confidence}: 8 draws or more, and two shares")
    generator = torch.Generator().manual_seed(seed)
    cut = (torch.rand(samples, *graph.shape, generator=generator) < share) & ~verified
    values = measure(model, task, graph, list(~cut), metric=metric, ablation=ablation, batch=batch)
    lost = (values.clean.mean() - values.kept.mean(1)).flatten()
    inside = cut.reshape(samples, -1).double()
    groups = []
    for drawn in (inside, 1 - inside):
        count = drawn.sum(0)
        centre = (drawn * lost[:, None]).sum(0) / count
        spread = (drawn * (lost[:, None] - centre).square()).sum(0) / (count - 1)
        groups.append((centre, spread / count, count))
    (mean, error, count), (other_mean, other_error, other_count) = groups
    estimate, variance = mean - other_mean, error + other_error
    freedom = variance.square() / (error.square() / (count - 1) + other_error.square() / (other_count - 1))
    factor = torch.as_tensor(student.ppf(confidence, freedom.nan_to_num(1.0).clamp_min(1.0).numpy()))
    upper = (estimate.abs() + factor * variance.sqrt()).nan_to_num(float("inf"))
    open_ = ~verified.flatten()
    estimate, upper = (torch.where(open_, x, 0.0).float().reshape(graph.shape) for x in (estimate, upper))
    return Bound(graph, estimate, upper, confidence, samples)
