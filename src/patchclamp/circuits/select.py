"""From scores to a circuit: the strongest edges that hang together between the embeddings and the logits.

mask = select(scores, 30)                        # the 30 strongest, or as many as are connected
mask = select(scores, 0.1, how="greedy")         # a tenth of all edges, grown backwards from the logits
"""

import heapq
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from patchclamp.circuits.graph import Graph, GraphError
from patchclamp.circuits.scores import Scores

How = Literal["top", "greedy"]


def select(
    scores: Scores, edges: int | float, *, how: How = "top", signed: bool = False
) -> Bool[Tensor, "edge *place"]:
    """At most `edges` edges (below 1: a share of all), connected.

    "top" takes as many of the strongest as leave at most `edges` once those that lie on no path are pruned; "greedy"
    takes the strongest edge into what is already connected to the logits, again and again, and prunes at the end.
    Strong means large in size (and not zero), or, where `signed`, large. Scores of nodes choose whole heads and MLPs:
    an edge is as strong as the weaker of its two ends.
    """
    graph, values = scores.graph, strengths(scores, signed=signed)
    wanted = edges if isinstance(edges, int) else int(edges * graph.size)
    if not 0 < wanted <= graph.size:
        raise GraphError(f"edges={edges!r}: a number from 1 to {graph.size}, or a share of them below 1")
    if how == "greedy":
        return graph.connected(_greedy(graph, values, wanted, signed))
    if how != "top":
        raise GraphError(f"how={how!r}: it is 'top' or 'greedy'")
    order = values.flatten().argsort(descending=True, stable=True)

    def of(count: int) -> Bool[Tensor, "edge *place"]:
        mask = torch.zeros(graph.size, dtype=torch.bool)
        mask[order[:count]] = True
        mask &= signed | (values.flatten() > 0)  # an edge of no effect explains nothing
        return graph.connected(mask.reshape(graph.shape))

    low, high = wanted, graph.size  # what is connected only grows with what is taken
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(of(middle).sum()) <= wanted else (low, middle - 1)
    return of(low)


def strengths(scores: Scores, *, signed: bool = False) -> Tensor:
    """One number for each edge, the larger the stronger."""
    values = scores.values if signed else scores.values.abs()
    if scores.of == "edges":
        return values
    graph = scores.graph
    number = {site: index for index, site in enumerate(graph.senders)}
    best = values.amax(0) if len(values) else values
    ends = []
    for sender, reader in graph.edges:
        readers = [values[number[node]] for node in graph.node_of(reader)] or [best]
        ends.append(torch.minimum(values[number[sender]], torch.stack(readers).amax(0)))
    return torch.stack(ends).reshape(graph.shape)


def _greedy(graph: Graph, values: Tensor, wanted: int, signed: bool) -> Bool[Tensor, "edge *place"]:
    flat = values.reshape(len(graph.edges), -1)
    into: dict = {}
    for number, (_, reader) in enumerate(graph.edges):
        for node in graph.node_of(reader) or ("logits",):
            into.setdefault(node, []).append(number)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    heap: list[tuple[float, int, int]] = []
    reached: set = set()

    def reach(node: object) -> None:
        if node in reached:
            return
        reached.add(node)
        for number in into.get(node, ()):
            for place in range(flat.shape[1]):
                if not bool(mask[number, place]):
                    heapq.heappush(heap, (-float(flat[number, place]), number, place))

    reach("logits")
    taken = 0
    while heap and taken < wanted:
        strength, number, place = heapq.heappop(heap)
        if not bool(mask[number, place]) and (signed or strength < 0):
            mask[number, place] = True
            taken += 1
            reach(graph.edges[number][0])
    return mask.reshape(graph.shape)
