"""Node patching: every head, MLP and embedding exchanged whole, one at a time, by `patchclamp.patching.sweep`.

scores = circuits.node_patching(model, task)     # scores.of == "nodes"; select() takes the edges between the best
"""

import torch

from patchclamp import metrics
from patchclamp.circuits.graph import ALL, OTHER, Graph, GraphError, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.model import Model
from patchclamp.patching.sweep import Direction, sweep
from patchclamp.sites import Site
from patchclamp.tasks import Task


def node_patching(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    direction: Direction = "noise",
) -> Scores:
    """What the metric loses when a sender's output is the corrupted prompts' (or brings back, denoising); exact."""
    graph = as_graph(model, graph)
    if graph.places[-1] == OTHER:
        raise GraphError("nodes are patched at all positions or at each: Graph.of(model, positions=NUMBER)")
    positions = "all" if graph.places == (ALL,) else "each"
    values = torch.zeros(len(graph.senders), *graph.shape[1:])
    for kind in dict.fromkeys(site.kind for site in graph.senders):
        named = [index for index, site in enumerate(graph.senders) if site.kind == kind]
        sites = [graph.senders[index] for index in named]
        if kind == "pos_embed":
            continue  # the same in both runs
        if kind == "embed":
            sites = [Site("resid_pre", 0)]  # in which nothing else differs
        effects = sweep(model, task, sites, positions=positions, metric=metric, normalise=False, direction=direction)
        whole = float(effects.attrs["clean" if direction == "noise" else "corrupted"])
        for index, site in zip(named, sites, strict=True):
            where = {"layer": site.layer, "head": site.unit}
            found = effects.sel({dim: at for dim, at in where.items() if dim in effects.dims}).to_numpy()
            change = torch.as_tensor(whole - found if direction == "noise" else found - whole).float()
            if positions == "all":
                values[index] = change
            else:
                values[index, : len(change)] = change
    return scores_of(model, task, graph, values, "node-patching", metric, of="nodes", direction=direction)
