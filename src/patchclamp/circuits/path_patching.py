"""Path patching: senders exchanged along the paths that lead to some receivers, and along no other.

    scores = circuits.path_patching(model, task, receivers=["logits"])                 # each sender by itself
    effect = circuits.path_effect(model, task, ["z.1.*"], ["q.2.0", "k.2.0"], through=["mlp_out.*"])

Wang et al. 2022 (arXiv:2211.00593); Goldowsky-Dill et al. 2023 (arXiv:2304.05969). Receivers are inputs (`q.2.0`,
`mlp_in.1`, `logits`). Paths are direct, or lead on `through` components, which are computed again from what reaches
them; all others write what they wrote in the clean run. The receivers then read what came along the paths, and all
that is downstream of them is computed again.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.circuits.graph import Graph, GraphError, as_graph, sites_of
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import Ablation, Side, metric_of, sides
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views.terminal import track

Names = Sequence["str | Site"]


@torch.no_grad()
def path_effect(
    model: Model,
    task: Task,
    senders: Names,
    receivers: Names,
    *,
    through: Names = (),
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 16,
) -> Float[Tensor, "prompt"]:
    """What the metric of each prompt loses when all `senders` at once are exchanged along the paths to `receivers`."""
    graph, score = Graph.of(model), metric_of(metric)
    chosen = sites_of(senders, model, graph.senders)
    ends, between = _ends(graph, model, receivers, through)
    parts = sides(model, graph, task, ablation=ablation, batch=batch)
    return torch.cat([_lost(side, chosen, ends, between, score) for side in parts])


@torch.no_grad()
def path_patching(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    receivers: Names = ("logits",),
    through: Names = (),
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 16,
) -> Scores:
    """What the metric loses when each sender by itself is exchanged along the paths to `receivers`: scores of nodes."""
    graph, score = as_graph(model, graph), metric_of(metric)
    if len(graph.places) > 1:
        raise GraphError("paths lead through all positions: attention moves what they carry")
    ends, between = _ends(graph, model, receivers, through)
    values = torch.zeros(len(graph.senders), dtype=torch.double)
    for side in sides(model, graph, task, ablation=ablation, batch=batch):
        for index, sender in enumerate(track(graph.senders, "following paths")):
            values[index] += _lost(side, [sender], ends, between, score).sum()
    settings = {"receivers": list(map(str, ends)), "through": list(map(str, between)), "ablation": ablation}
    return scores_of(model, task, graph, values / len(task), "path-patching", metric, of="nodes", **settings)


def _ends(graph: Graph, model: Model, receivers: Names, through: Names) -> tuple[list[Site], list[Site]]:
    ends = sites_of(receivers, model, graph.readers)
    between = sites_of(through, model, graph.senders) if through else []
    return ends, [site for site in graph.senders if site in between]


def _lost(side: Side, senders: list[Site], receivers: list[Site], through: list[Site], score: metrics.Metric) -> Tensor:
    """For each prompt; `arrives` is what every sender writes in the run in which only the paths carry something."""
    graph = side.wiring.graph
    arrives = [x.clone() for x in side.clean.written]
    number = {site: index for index, site in enumerate(graph.senders)}
    changed = [number[site] for site in senders]
    for index in changed:
        arrives[index] = side.other[index]
    for site in through:
        if site in senders:
            continue
        own = [reader for reader in graph.readers if site in graph.node_of(reader)]
        keep = _cut(graph, changed, own)
        if not bool((keep < 1).any()):
            continue
        run = side.wiring.run(keep=keep, other=torch.stack(arrives), before=side.clean, first=site.layer or 0)
        arrives[number[site]] = run.written[number[site]]
        changed.append(number[site])
    keep = _cut(graph, changed, receivers)
    first = min((reader.layer for reader in receivers if reader.layer is not None), default=side.wiring.model.n_layers)
    run = side.wiring.run(keep=keep, other=torch.stack(arrives), before=side.clean, first=first)
    base = score(side.clean.logits, side.task)
    return (base - score(run.logits, side.task)).double().cpu()


def _cut(graph: Graph, senders: list[int], readers: list[Site]) -> Tensor:
    """Everything kept but the edges between these."""
    ends = {reader: index for index, reader in enumerate(graph.readers)}
    keep = torch.ones(len(graph.senders), len(graph.readers), len(graph.places))
    for reader in readers:
        for sender in senders:
            if (graph.senders[sender], reader) in graph.index:
                keep[sender, ends[reader]] = 0
    return keep
