"""ACDC: edges are cut one after the other, from the logits backwards, and stay cut where next to nothing is lost.

    scores = circuits.acdc(model, task, threshold=0.01)
    scores.graph.chosen(scores.values >= scores.settings["cut"])      # the circuit that is left

Conmy et al. 2023 (arXiv:2304.14997): readers in the reverse of the order of a forward pass, each with its senders from
the last to the first. An edge's score is what the metric loses when it is cut besides all that are cut already. As only
readers behind have been changed, the layers below are those of the clean run and are not computed again.
"""

import torch

from patchclamp import metrics
from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import Ablation, metric_of, sides
from patchclamp.model import Model
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress


@torch.no_grad()
def acdc(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    threshold: float = 0.01,
    ablation: Ablation = "resample",
    batch: int = 32,
) -> Scores:
    """What each edge's cut changes (the size of it) at its turn; below `threshold` it stays cut.

    `threshold` is a share of what the metric changes by when every edge is cut; `settings["cut"]` has it in the
    metric's units. Edges whose sender is the same in both runs change nothing, and are cut without a run.
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold!r}: a share of the metric's change, above 0")
    graph, score = as_graph(model, graph), metric_of(metric)
    parts = list(sides(model, graph, task, ablation=ablation, batch=batch))
    keep = graph.matrix(torch.ones(graph.shape), fill=1.0)

    def value(first: int) -> float:
        runs = ((side, side.wiring.run(keep=keep, other=side.other, before=side.clean, first=first)) for side in parts)
        return sum(float(score(run.logits, side.task).sum()) for side, run in runs) / len(task)

    now = value(model.n_layers)
    keep.zero_()
    cut = threshold * abs(now - value(0))
    keep.fill_(1.0)
    total = graph.zeros()
    moves = torch.stack([(side.other != side.clean.sent).flatten(1).any(1).cpu() for side in parts]).any(0)
    items = [(*pair, place) for pair in graph.pairs.T.tolist() for place in range(len(graph.places))]
    items.sort(key=lambda item: (-item[1], -item[0]))
    with progress("cutting edges for good", len(items)) as advance:
        for sender, reader, place in items:
            keep[sender, reader, place] = 0
            advance()
            if not bool(moves[sender]):
                continue
            layer = graph.readers[reader].layer
            then = value(model.n_layers if layer is None else layer)
            total[sender, reader, place] = abs(now - then)
            if abs(now - then) < cut:
                now = then
            else:
                keep[sender, reader, place] = 1
    settings = {"threshold": threshold, "cut": cut, "ablation": ablation}
    return scores_of(model, task, graph, graph.vector(total), "acdc", metric, **settings)
