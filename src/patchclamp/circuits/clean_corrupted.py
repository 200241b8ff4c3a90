"""Edge attribution with the gradients of the two ends only: the clean run's and the other's.

    scores = circuits.clean_corrupted(model, task)

Integrated gradients with two points, by the trapezoidal rule (Hanna et al. 2024, arXiv:2403.17806): most of what the
way in between adds to `eap`, at the price of one more pass.
"""

from patchclamp import metrics
from patchclamp.circuits.eap_ig import through_inputs
from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import Ablation, metric_of, sides
from patchclamp.model import Model
from patchclamp.tasks import Task


def clean_corrupted(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 16,
) -> Scores:
    """Edge attribution with the mean of the clean run's gradient and the other run's."""
    graph, score = as_graph(model, graph), metric_of(metric)
    total = graph.zeros()
    for side in sides(model, graph, task, ablation=ablation, batch=batch):
        total += through_inputs(side, 0.0, score) + through_inputs(side, 1.0, score)
    values = graph.vector(total / (2 * len(task)))
    return scores_of(model, task, graph, values, "clean-corrupted", metric, ablation=ablation)
