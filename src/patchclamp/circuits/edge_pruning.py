"""Edge pruning: a mask over all edges at once, trained to keep the network's answer with as few edges as wanted.

    scores = circuits.edge_pruning(model, task, edges=0.1, seed=0)

Bhaskar et al. 2024 (arXiv:2406.16778), with hard-concrete masks (Louizos et al. 2018, arXiv:1712.01312) and a
Lagrangian that holds the expected number of edges at a target, which is lowered from all edges to `edges` in the first
two thirds of the steps. What is kept close is the distribution of the next token (KL divergence). A score is the
probability that its edge's gate is open.
"""

import torch
from torch import Tensor

from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import Ablation, sides
from patchclamp.model import Model
from patchclamp.tasks import Task
from patchclamp.views.terminal import track

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # of hard-concrete gates: stretched beyond 0 and 1, then clipped
_OPEN = 2.0  # the first log-odds of every gate


def edge_pruning(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    edges: float = 0.1,
    steps: int = 200,
    learning_rate: float = 0.2,
    ablation: Ablation = "resample",
    batch: int = 16,
    seed: int = 0,
) -> Scores:
    """Train the mask for `steps` steps of one batch each, to `edges` of all edges (a share)."""
    if not 0 < edges < 1 or steps < 1:
        raise ValueError(f"edges={edges!r}, steps={steps!r}: a share of all edges below 1, and at least one step")
    graph = as_graph(model, graph)
    parts = list(sides(model, graph, task, ablation=ablation, batch=batch))
    generator = torch.Generator().manual_seed(seed)
    open_ = torch.full(graph.shape, _OPEN, requires_grad=True)
    prices = torch.zeros(2, requires_grad=True)
    ascent = torch.optim.Adam([prices], lr=learning_rate, maximize=True)
    descent = torch.optim.Adam([open_], lr=learning_rate)
    for step in track(range(steps), "training the mask"):
        side = parts[int(torch.randint(len(parts), (), generator=generator))]
        target = max(edges, 1 - (1 - edges) * step / (2 * steps / 3))
        keep = graph.matrix(_drawn(open_, generator), fill=1.0).to(side.other)
        logits = side.wiring.run(keep=keep, other=side.other).logits
        wanted = side.clean.logits.log_softmax(-1)
        divergence = (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean()
        excess = probability(open_).mean() - target
        loss = divergence + prices[0] * excess + prices[1] * excess.square()
        descent.zero_grad()
        ascent.zero_grad()
        loss.backward(inputs=[open_, prices])
        descent.step()
        ascent.step()
    values = probability(open_).detach()
    settings = {"edges": edges, "steps": steps, "learning_rate": learning_rate, "ablation": ablation}
    return scores_of(model, task, graph, values, "edge-pruning", "kl_divergence", seed=seed, **settings)


def probability(log_odds: Tensor) -> Tensor:
    """That a gate is not closed."""
    return (log_odds - TEMPERATURE * torch.tensor(-LOW / HIGH).log()).sigmoid()


def _drawn(log_odds: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(log_odds.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    gate = ((uniform.log() - (1 - uniform).log() + log_odds) / TEMPERATURE).sigmoid()
    return (gate * (HIGH - LOW) + LOW).clamp(0, 1)
