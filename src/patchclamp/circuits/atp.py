"""AtP and AtP*: attribution patching, and what mends its two ways to miss (Kramár et al. 2024).

    scores = circuits.atp(model, task)                       # nodes: what each sender's exchange would change
    scores = circuits.atp_star(model, task)                  # edges: QK fix and GradDrop
    scores = circuits.atp_star(model, task, drop=False)      # QK fix alone, signed

Attribution misses what works through saturated attention, where the gradient through the softmax is zero. The QK fix
computes the attention pattern with the exchanged query (or key) and takes the gradient from there: exact up to the
pattern. It also misses effects that cancel in the gradient, one through a later layer and one around it: GradDrop takes
as many gradients as there are layers, each with one layer's outputs left out, and averages the sizes of the scores; the
whole gradient is one more here, as in two layers no path through both is left by any other.
From arXiv:2403.00745, carried over from nodes to edges: an edge into a query is the exchange of a part of it.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.circuits.eap import eap
from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import Ablation, Gradients, Passed, Side, metric_of, sides
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress

ByPrompt = Float[Tensor, "prompt sender reader place"]


def atp(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    batch: int = 16,
) -> Scores:
    """Attribution patching of every sender: the sum of its edges' (`eap`), as every effect takes one of them first."""
    edges = eap(model, task, graph, metric=metric, ablation=ablation, batch=batch)
    return scores_of(model, task, edges.graph, _summed(edges), "atp", metric, of="nodes", ablation=ablation)


def atp_star(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    of: Literal["edges", "nodes"] = "edges",
    drop: bool = True,
    ablation: Ablation = "resample",
    batch: int = 16,
) -> Scores:
    """Attribution with the QK fix and, unless `drop` is off, GradDrop, which gives sizes without a sign.

    With GradDrop, scores are the mean over prompts of the mean size over dropped layers; without, plain means.
    """
    graph, score = as_graph(model, graph), metric_of(metric)
    total = graph.zeros()
    layers = [None, *range(model.n_layers)] if drop else [None]
    with progress("AtP*", len(task) * len(layers)) as advance:
        for side in sides(model, graph, task, ablation=ablation, batch=batch):
            run = side.wiring.run(nudged=True, patterns=True)
            value = score(run.logits, side.task).sum()
            shifts = _shifts(side, run)
            for layer in layers:
                found = _scores(side, shifts, *run.gradients(value, drop=layer, again=True))
                found = _of_nodes(found) if of == "nodes" else found
                # One of them drops the reader's own layer, and is zero.
                total += (found.abs() / model.n_layers if drop else found).sum(0)
                advance(len(side.task))
    total /= len(task)
    values = graph.vector(total)
    if of == "nodes":
        values = total[:, 0].reshape(len(graph.senders), *graph.shape[1:])
    settings = {"ablation": ablation, "drop": drop}
    return scores_of(model, task, graph, values, "atp-star", metric, of=of, **settings)


def _scores(side: Side, shifts: "list[_Shift]", gradients: Gradients, patterns: dict[int, Tensor]) -> ByPrompt:
    """Each edge's score in each prompt: linear, but for the edges into queries and keys."""
    found = side.wiring.dots_by_prompt(side.clean.sent - side.other, gradients)
    for shift in shifts:
        # [sender, prompt, head, query, key] -> by the query's place, or summed where `shift` is of one place
        product = torch.einsum("sbhqk,bhqk->sbhq", shift.change, patterns[shift.layer].to(shift.change))
        for reader, heads in shift.readers:
            here = product[:, :, heads].sum(2)  # [sender, prompt, query]
            for place in range(len(side.wiring.graph.places)):
                if shift.place is None:
                    inside = (side.wiring.place == place).to(here)
                    found[:, shift.senders, reader, place] = -(here * inside).sum(-1).T.cpu()
                elif place == shift.place:
                    found[:, shift.senders, reader, place] = -here.sum(-1).T.cpu()
    return found


class _Shift:
    """How the patterns of a layer change when its queries, or its keys at one place, read another sender's output."""

    def __init__(self, layer: int, place: int | None, senders: list[int], readers: list, change: Tensor):
        self.layer, self.place, self.senders, self.readers, self.change = layer, place, senders, readers, change


@torch.no_grad()
def _shifts(side: Side, run: Passed) -> list[_Shift]:
    graph, blocks = side.wiring.graph, side.wiring.blocks
    difference = side.other - side.clean.sent
    number = {site: index for index, site in enumerate(graph.senders)}
    reader_of = {site: index for index, site in enumerate(graph.readers)}
    found = []
    for layer, (pattern, _) in run.patterns.items():
        stream = side.clean.before[layer]
        senders = [number[a] for a, b in graph.edges if b == Site("q", layer, 0)]
        senders = [index for index in senders if bool(difference[index].any())]
        if not senders:
            continue
        made = blocks.inputs(layer, torch.cat([stream[None], stream + difference[senders]]))
        base = blocks.scores(layer, stream, {"q": made["q"][:1]})[0]
        for kind in "qk":
            scores = blocks.scores(layer, stream, {kind: made[kind][1:]})
            own = [site for site in graph.readers if site.kind == kind and site.layer == layer]
            group = scores.shape[2] // len(own)
            readers = [(reader_of[site], slice(i * group, (i + 1) * group)) for i, site in enumerate(own)]
            if kind == "q" or len(graph.places) == 1:
                place = None if kind == "q" else 0
                found.append(_Shift(layer, place, senders, readers, _pattern(scores, base, pattern) - pattern))
                continue
            for place in range(len(graph.places)):  # a key changes its own column of scores, and through them all
                inside = (side.wiring.place == place)[None, :, None, None, :]
                mixed = torch.where(inside, scores, base)
                found.append(_Shift(layer, place, senders, readers, _pattern(mixed, base, pattern) - pattern))
    return found


def _pattern(scores: Tensor, base: Tensor, pattern: Tensor) -> Tensor:
    """Softmax of scores; the share that a sink takes is what it takes beside the scores of the base run."""
    exact = torch.promote_types(scores.dtype, torch.float32)
    total = pattern.to(exact).sum(-1, keepdim=True).clamp_max(1.0)
    normaliser = base.to(exact).logsumexp(-1, keepdim=True)
    sink = normaliser + ((1 - total).clamp_min(0) / total).log()  # -inf where there is none
    sink = torch.where(total > 1 - 1e-5, -torch.inf, sink)
    whole = torch.logaddexp(scores.to(exact).logsumexp(-1, keepdim=True), sink)
    made = (scores.to(exact) - whole).exp()
    return made.nan_to_num(0.0).to(pattern.dtype)


def _of_nodes(found: ByPrompt) -> ByPrompt:
    """A sender's score is the sum of its edges': signed within a prompt, before sizes are taken."""
    return found.sum(2, keepdim=True).expand_as(found)


def _summed(edges: Scores) -> Tensor:
    matrix = edges.graph.matrix(edges.values).sum(1)
    return matrix.reshape(len(edges.graph.senders), *edges.graph.shape[1:])
