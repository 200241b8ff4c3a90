"""Edge attribution with integrated gradients: the gradient is averaged on the way from the other run to the clean one.

    scores = circuits.eap_ig(model, task)                          # the way leads through the embeddings
    scores = circuits.eap_ig(model, task, of="activations")        # through each layer's own output

Of inputs (Hanna et al. 2024, arXiv:2403.17806): the embeddings move from the other run's to the clean ones, and each
edge's score is its difference times the mean gradient at the reader. The edges out of the embeddings then sum to what
the metric changes by (completeness), up to the error of the sum over `steps`. Of activations (Marks et al. 2024,
arXiv:2403.19647): one layer's heads, or one MLP, move at a time, and give the scores of the edges that leave them.
"""

from typing import Literal

import torch

from patchclamp import metrics
from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import Ablation, Matrix, Side, metric_of, sides
from patchclamp.model import Model
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress

Rule = Literal["midpoint", "left", "right"]
_OFFSET = {"midpoint": 0.5, "left": 0.0, "right": 1.0}


def eap_ig(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    of: Literal["inputs", "activations"] = "inputs",
    steps: int = 8,
    rule: Rule = "midpoint",
    ablation: Ablation = "resample",
    batch: int = 16,
) -> Scores:
    """Edge attribution with the gradient's mean over `steps` points of the way.

    `rule` says where in each of the steps: at its middle, or at an end, as the implementations of the paper do.
    """
    if of not in ("inputs", "activations"):
        raise ValueError(f"of={of!r}: the way leads through 'inputs' or 'activations'")
    if rule not in _OFFSET or steps < 1:
        raise ValueError(f"rule={rule!r}, steps={steps}: a rule is 'midpoint', 'left' or 'right', of at least one step")
    graph, score = as_graph(model, graph), metric_of(metric)
    points = [(step + _OFFSET[rule]) / steps for step in range(steps)]
    ways = 1 if of == "inputs" else len(_groups(graph))
    total = graph.zeros()
    with progress("integrated gradients", len(task) * steps * ways) as advance:
        for side in sides(model, graph, task, ablation=ablation, batch=batch):
            for point in points:
                if of == "inputs":
                    total += through_inputs(side, point, score)
                    advance(len(side.task))
                    continue
                for group in _groups(graph):
                    total += _through(side, group, point, score)
                    advance(len(side.task))
    values = graph.vector(total / (len(task) * steps))
    name = "eap-ig" if of == "inputs" else "eap-ig-activations"
    return scores_of(model, task, graph, values, name, metric, ablation=ablation, steps=steps, rule=rule)


def through_inputs(side: Side, point: float, score: metrics.Metric) -> Matrix:
    """Scores summed over prompts, with the gradient at one point of the way from the other embeddings to the clean."""
    clean = side.wiring.blocks.start
    start = torch.lerp(side.other[: len(clean)], clean, point)
    run = side.wiring.run(start=start, nudged=True)
    gradients, _ = run.gradients(score(run.logits, side.task).sum())
    return side.wiring.dots(side.clean.sent - side.other, gradients)


def _groups(graph: Graph) -> list[list[int]]:
    """Senders that move together: the embeddings, the heads of a layer, one MLP."""
    found: dict[tuple, list[int]] = {}
    for number, site in enumerate(graph.senders):
        key = ("start",) if site.layer is None or site.kind == "resid_pre" else (site.kind, site.layer)
        found.setdefault(key, []).append(number)
    return list(found.values())


def _through(side: Side, group: list[int], point: float, score: metrics.Metric) -> Matrix:
    graph = side.wiring.graph
    clean = side.clean.sent
    keep = clean.new_ones(len(graph.senders), len(graph.readers), len(graph.places))
    keep[group] = point
    first = graph.senders[group[0]].layer or 0  # below, everything is as in the clean run
    run = side.wiring.run(keep=keep, other=side.other, nudged=True, before=side.clean, first=first)
    found = side.wiring.dots(clean - side.other, run.gradients(score(run.logits, side.task).sum())[0])
    only = torch.zeros_like(found)
    only[group] = found[group]
    return only
