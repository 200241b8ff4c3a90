"""How good a circuit is: what the network still does with it alone, and without it, beside random circuits.

    values = measure(model, task, graph, [mask])                 # the metric of each prompt, clean, ablated, circuit
    values.faithfulness(0), values.interval(0)
    curve(model, task, scores).cpr                               # over sizes, those that circuits really have

The circuit alone: every edge outside it carries the other run's contribution (or the mean, or zero), and all that
follows is computed. Faithfulness is (m(circuit) - m(nothing)) / (m(network) - m(nothing)); completeness is the same of
the network without the circuit's edges (Marks et al. 2024, arXiv:2403.19647; near 0 where nothing else does it);
minimality is what each edge adds (Wang et al. 2022, arXiv:2211.00593). CPR is the area under faithfulness over size,
CMD that between it and 1 (Mueller et al. 2025, arXiv:2504.13151). Ablations disagree, so all three are reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.circuits.graph import Graph, GraphError
from patchclamp.circuits.random_scores import random_scores
from patchclamp.circuits.scores import Scores
from patchclamp.circuits.select import How, select
from patchclamp.circuits.wiring import Ablation, metric_of, sides
from patchclamp.model import Model
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress

Mask = Bool[Tensor, "edge *place"]
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, eq=False)
class Values:
    """The metric of every prompt: of the network, with every edge cut, and with each circuit alone."""

    clean: Float[Tensor, "prompt"]
    ablated: Float[Tensor, "prompt"]
    kept: Float[Tensor, "circuit prompt"]

    def __post_init__(self) -> None:
        gap = self.clean.mean() - self.ablated.mean()
        if not float(gap.abs()) > 1e-6 * float(self.clean.abs().mean()):
            raise GraphError("the metric is the same with every edge cut: nothing to be faithful to")

    def faithfulness(self, circuit: int = 0, rows: Any = slice(None)) -> float:
        """1: as the network; 0: as with every edge cut. Means over prompts first, as a mean of ratios is no ratio."""
        ends = self.clean[rows].mean() - self.ablated[rows].mean()
        return float((self.kept[circuit, rows].mean() - self.ablated[rows].mean()) / ends)

    def interval(self, circuit: int = 0, *, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """2.5 % and 97.5 % quantiles over prompts drawn again."""
        drawn = np.random.default_rng(seed).integers(len(self.clean), size=(draws, len(self.clean)))
        rows = torch.as_tensor(drawn)
        clean, ablated, kept = (x[rows].mean(1) for x in (self.clean, self.ablated, self.kept[circuit]))
        ratio = ((kept - ablated) / (clean - ablated)).nan_to_num(0.0)
        low, high = np.quantile(ratio.numpy(), [0.025, 0.975])
        return float(low), float(high)


@torch.no_grad()
def measure(
    model: Model,
    task: Task,
    graph: Graph,
    masks: Sequence[Mask],
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 32,
) -> Values:
    """Run the network with each circuit alone; exact."""
    score = metric_of(metric)
    every = [torch.zeros(graph.shape, dtype=torch.bool), *masks]
    clean = torch.empty(len(task), dtype=torch.double)
    kept = torch.empty(len(every), len(task), dtype=torch.double)
    with progress("running circuits", len(every) * len(task)) as advance:
        for side in sides(model, graph, task, ablation=ablation, batch=batch):
            clean[side.rows] = score(side.clean.logits, side.task).double().cpu()
            for index, mask in enumerate(every):
                keep = graph.matrix(mask.to(side.other.dtype)).to(side.other.device)
                logits = side.wiring.run(keep=keep, other=side.other).logits
                kept[index, side.rows] = score(logits, side.task).double().cpu()
                advance(len(side.task))
    return Values(clean, kept[0], kept[1:])


@dataclass(frozen=True)
class Curve:
    """Faithfulness by size: `shares` are the shares of all edges that the circuits really have."""

    method: str
    ablation: Ablation
    shares: tuple[float, ...]
    faithfulness: tuple[float, ...]

    @property
    def cpr(self) -> float:
        """The area under faithfulness, from no edge (0) to all (1), by the trapezoidal rule. Larger is better."""
        return float(np.trapezoid([0.0, *self.faithfulness, 1.0], [0.0, *self.shares, 1.0]))

    @property
    def cmd(self) -> float:
        """The area between faithfulness and 1. Smaller is better."""
        return float(np.trapezoid(np.abs(1 - np.array([0.0, *self.faithfulness, 1.0])), [0.0, *self.shares, 1.0]))


def curve(
    model: Model,
    task: Task,
    scores: Scores,
    *,
    sizes: Sequence[float] = SIZES,
    how: How = "top",
    signed: bool = False,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 32,
) -> Curve:
    """Faithfulness of the circuits of several sizes (shares of all edges) that the scores choose."""
    graph = scores.graph
    counts = sorted({max(1, int(size * graph.size)) for size in sizes})
    chosen = {int(mask.sum()): mask for mask in (select(scores, count, how=how, signed=signed) for count in counts)}
    masks = [chosen[size] for size in sorted(chosen) if size]
    values = measure(model, task, graph, masks, metric=metric, ablation=ablation, batch=batch)
    faithful = tuple(values.faithfulness(index) for index in range(len(masks)))
    return Curve(scores.method, ablation, tuple(int(mask.sum()) / graph.size for mask in masks), faithful)


@dataclass(frozen=True)
class Measured:
    """One circuit under one ablation: its faithfulness with its interval over prompts, the network's without it, and
    the faithfulness of random circuits of its size.
    """

    ablation: Ablation
    edges: int
    share: float
    faithfulness: float
    interval: tuple[float, float]
    completeness: float
    random: tuple[float, ...]
    clean: float
    ablated: float

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "interval": list(self.interval), "random": list(self.random)}


def judge(
    model: Model,
    task: Task,
    graph: Graph,
    mask: Mask,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    random: int = 10,
    seed: int = 0,
    batch: int = 32,
) -> Measured:
    """A circuit beside its complement and beside `random` connected circuits of as many edges."""
    others = random_circuits(model, task, graph, int(mask.sum()), random, seed=seed)
    values = measure(model, task, graph, [mask, ~mask, *others], metric=metric, ablation=ablation, batch=batch)
    return Measured(
        ablation,
        int(mask.sum()),
        int(mask.sum()) / graph.size,
        values.faithfulness(0),
        values.interval(0, seed=seed),
        values.faithfulness(1),
        tuple(values.faithfulness(2 + index) for index in range(random)),
        float(values.clean.mean()),
        float(values.ablated.mean()),
    )


def random_circuits(model: Model, task: Task, graph: Graph, edges: int, n: int, *, seed: int = 0) -> list[Mask]:
    """Connected circuits of random scores with as many edges, or the nearest number below that is connected."""
    return [select(random_scores(model, task, graph, seed=seed + index), max(edges, 1)) for index in range(n)]


def minimality(
    model: Model,
    task: Task,
    graph: Graph,
    mask: Mask,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 32,
) -> Float[Tensor, "edge *place"]:
    """What faithfulness loses when one edge of the circuit is cut as well; 0 for edges outside it."""
    members = mask.flatten().nonzero().flatten().tolist()
    masks = [mask]
    for at in members:
        fewer = mask.clone()
        fewer.view(-1)[at] = False
        masks.append(fewer)
    values = measure(model, task, graph, masks, metric=metric, ablation=ablation, batch=batch)
    found = torch.zeros(mask.numel())
    for index, at in enumerate(members):
        found[at] = values.faithfulness(0) - values.faithfulness(index + 1)
    return found.reshape(mask.shape)
