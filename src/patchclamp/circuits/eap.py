"""Edge attribution patching: the effect of every edge to first order, from two forward passes and one backward.

    scores = circuits.eap(model, task)

The score is (clean contribution - the other run's) . gradient of the metric at the reader's own stream, in the clean
run (Nanda 2023; Syed et al. 2023, arXiv:2310.10348). Exact where the metric is linear in the edge; blind where it is
flat, as behind saturated attention. `eap_ig` averages the gradient over a path.
"""

from patchclamp import metrics
from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import Ablation, metric_of, sides
from patchclamp.model import Model
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress


def eap(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 16,
) -> Scores:
    """What the metric would lose without each edge if it were linear."""
    graph, score = as_graph(model, graph), metric_of(metric)
    total = graph.zeros()
    with progress("edge attribution", len(task)) as advance:
        for side in sides(model, graph, task, ablation=ablation, batch=batch):
            run = side.wiring.run(nudged=True)
            gradients, _ = run.gradients(score(run.logits, side.task).sum())
            total += side.wiring.dots(side.clean.sent - side.other, gradients)
            advance(len(side.task))
    return scores_of(model, task, graph, graph.vector(total / len(task)), "eap", metric, ablation=ablation)
