"""The graph that every method scores: who writes to the residual stream, who reads it, and which pairs there are.

    graph = Graph.of(model)                          # Graph.of(model, positions=task): each edge at each role's tokens
    graph.edges[0]                                   # (Site("embed"), Site("q", 0, 0)): named as in truth(...).edges
    graph.matrix(scores.values)                      # [sender, reader, place]

A sender is an embedding, a head or an MLP; a reader is the query, key or value input of a head, the input of an MLP, or
the logits. Keys and values are read once for each key-value head. A block that mixes tokens without softmax attention
is one sender, `attn_out`, with one reader, `attn_in`. An edge leads from each sender to each reader behind it: in
parallel blocks the MLP does not read the heads beside it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.model import Model
from patchclamp.sites import Site, SiteError
from patchclamp.tasks import Task

Edge = tuple[Site, Site]
ALL = "all"


class GraphError(ValueError):
    """An architecture, an edge or a position that a graph of the residual stream does not have."""


@dataclass(frozen=True)
class Graph:
    """Senders and readers in the order in which a forward pass makes them, and the edges between them, by reader.

    `places` names the positions that edges are told apart by: ("all",) where they are not.
    """

    model: str
    senders: tuple[Site, ...]
    readers: tuple[Site, ...]
    edges: tuple[Edge, ...]
    places: tuple[str, ...] = (ALL,)

    @classmethod
    def of(cls, model: Model, positions: "Task | int | None" = None) -> "Graph":
        """The graph of a model: by the roles of a task's tokens, by absolute position (their number), or by neither.

        GraphError where the stream is no sum of what is written to it: blocks that end in a norm, as in BERT.
        """
        refuse(model)
        senders = embeddings(model)
        readers: list[Site] = []
        edges: list[Edge] = []
        for layer in range(model.n_layers):
            heads, inputs, mlp = nodes_of(model, layer)
            edges += [(sender, reader) for reader in inputs for sender in senders]
            before, senders = senders, [*senders, *heads]
            if mlp:
                behind = senders if model.anatomy.layers[""][layer].sequential else before
                edges += [(sender, Site("mlp_in", layer)) for sender in behind]
                senders = [*senders, Site("mlp_out", layer)]
            readers += [*inputs, *([Site("mlp_in", layer)] if mlp else [])]
        edges += [(sender, Site("logits")) for sender in senders]
        places = (ALL,)
        if isinstance(positions, int):
            places = tuple(map(str, range(positions)))
        elif positions is not None:
            places = (*positions.labels, OTHER)
        return cls(model.name, tuple(senders), (*readers, Site("logits")), tuple(edges), places)

    def __post_init__(self) -> None:
        if not self.edges:
            raise GraphError(f"{self.model} has no component that writes to the residual stream")

    # ── as numbers ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one number for each edge: [edge], or [edge, place] where edges are told apart by position."""
        return (len(self.edges),) if self.places == (ALL,) else (len(self.edges), len(self.places))

    @property
    def size(self) -> int:
        """The number of edges, positions told apart where they are."""
        return len(self.edges) * len(self.places)

    @cached_property
    def index(self) -> dict[Edge, int]:
        return {edge: number for number, edge in enumerate(self.edges)}

    @cached_property
    def pairs(self) -> Int[Tensor, "2 edge"]:
        """Each edge's sender and reader, as indices."""
        senders = {site: number for number, site in enumerate(self.senders)}
        readers = {site: number for number, site in enumerate(self.readers)}
        return torch.tensor([[senders[a] for a, _ in self.edges], [readers[b] for _, b in self.edges]])

    def matrix(self, values: Float[Tensor, "edge *place"], fill: float = 0.0) -> Float[Tensor, "sender reader place"]:
        """One number for each edge as a matrix, `fill` where there is no edge."""
        if tuple(values.shape) != self.shape:
            raise GraphError(f"values of shape {list(values.shape)} for a graph of shape {list(self.shape)}")
        full = values.new_full((len(self.senders), len(self.readers), len(self.places)), fill)
        full[self.pairs[0], self.pairs[1]] = values.reshape(len(self.edges), -1)
        return full

    def zeros(self) -> Float[Tensor, "sender reader place"]:
        """A matrix to count in."""
        return torch.zeros(len(self.senders), len(self.readers), len(self.places), dtype=torch.double)

    def vector(self, matrix: Float[Tensor, "sender reader place"]) -> Float[Tensor, "edge *place"]:
        """The edges' entries of a matrix; the inverse of `matrix`."""
        return matrix[self.pairs[0], self.pairs[1]].reshape(self.shape)

    def mask(self, edges: "Collection[Edge]") -> Bool[Tensor, "edge *place"]:
        """Which edges of the graph are among `edges`; GraphError with one that the graph does not have."""
        unknown = [edge for edge in edges if edge not in self.index]
        if unknown:
            raise self._no_edge(unknown[0])
        found = torch.zeros(self.shape, dtype=torch.bool)
        found[[self.index[edge] for edge in edges]] = True
        return found

    def chosen(self, mask: Bool[Tensor, "edge *place"]) -> tuple[Edge, ...]:
        """The edges of a mask (at any place)."""
        picked = mask.reshape(len(self.edges), -1).any(1)
        return tuple(edge for edge, taken in zip(self.edges, picked.tolist(), strict=True) if taken)

    def _no_edge(self, edge: Edge) -> GraphError:
        sender, reader = edge
        known = [str(a) for a, b in self.edges if b == reader]
        said = f"it reads {', '.join(known)}" if known else f"readers are {', '.join(map(str, self.readers))}"
        return GraphError(f"no edge leads from {sender} to {reader}: {said}")

    def place(self, task: Task) -> Int[Tensor, "prompt pos"]:
        """The index in `places` of each token of a task's prompts."""
        found = torch.zeros(task.clean.shape, dtype=torch.long)
        if self.places == (ALL,):
            return found
        if self.places[-1] == OTHER:
            missing = [role for role in self.places[:-1] if role not in task.labels]
            if missing:
                raise GraphError(f"task {task.name} has no positions labelled {', '.join(missing)}, as the graph has")
            found += len(self.places) - 1
            # An answer is given at a token that often has a second role: the first that is named keeps it.
            for index in reversed(range(len(self.places) - 1)):
                where = task.labels[self.places[index]]
                rows = (where >= 0).nonzero().flatten()
                found[rows, where[rows]] = index
            return found
        if task.clean.shape[1] > len(self.places):
            raise GraphError(f"a prompt of {task.clean.shape[1]} tokens in a graph of {len(self.places)} positions")
        return torch.arange(task.clean.shape[1]).expand_as(found)

    # ── structure ─────────────────────────────────────────────────────────────────────────────────────────────────

    def node_of(self, reader: Site) -> tuple[Site, ...]:
        """The senders that a reader is the input of: a head; the heads that share a key; nothing, for the logits."""
        return self._owners[reader]

    @cached_property
    def _owners(self) -> dict[Site, tuple[Site, ...]]:
        heads: dict[int | None, list[Site]] = {}
        for site in self.senders:
            if site.kind == "z":
                heads.setdefault(site.layer, []).append(site)
        found: dict[Site, tuple[Site, ...]] = {}
        for reader in self.readers:
            if reader.kind in "qkv":
                own = heads[reader.layer]
                shared = len([r for r in self.readers if r.kind == reader.kind and r.layer == reader.layer])
                group = len(own) // shared
                assert reader.unit is not None
                found[reader] = tuple(own[reader.unit * group : (reader.unit + 1) * group])
            elif reader.kind == "logits":
                found[reader] = ()
            else:
                found[reader] = (Site("mlp_out" if reader.kind == "mlp_in" else "attn_out", reader.layer),)
        return found

    def connected(self, mask: Bool[Tensor, "edge *place"]) -> Bool[Tensor, "edge *place"]:
        """Those edges of a mask that lie on a path of its edges from an embedding to the logits.

        Attention moves what it reads to other positions, so that a path may go on at any of them.
        """
        kept = set(self.chosen(mask))
        sources = {sender for sender in self.senders if not any(sender in own for own in self._owners.values())}
        while True:
            written = sources | {node for _, reader in kept for node in self._owners[reader]}
            read = {sender for sender, _ in kept}
            fewer = {
                (a, b)
                for a, b in kept
                if a in written and (b.kind == "logits" or any(node in read for node in self._owners[b]))
            }
            if fewer == kept:
                break
            kept = fewer
        alive = torch.tensor([edge in kept for edge in self.edges])
        return mask & alive.reshape(-1, *([1] * (mask.ndim - 1)))

    # ── elsewhere ─────────────────────────────────────────────────────────────────────────────────────────────────

    def to_networkx(self, values: Tensor | None = None, mask: Tensor | None = None) -> Any:
        """A `networkx.MultiDiGraph` of nodes (senders, and "logits"), its edges keyed by reader and place."""
        import networkx as nx

        found = nx.MultiDiGraph(model=self.model)
        found.add_nodes_from([*map(str, self.senders), "logits"])
        flat = None if values is None else values.reshape(len(self.edges), -1).tolist()
        chosen = None if mask is None else mask.reshape(len(self.edges), -1).tolist()
        for number, (sender, reader) in enumerate(self.edges):
            for index, place in enumerate(self.places):
                if chosen is not None and not chosen[number][index]:
                    continue
                weight = {} if flat is None else {"weight": flat[number][index]}
                key = str(reader) if place == ALL else f"{reader} {place}"
                for node in self._owners[reader] or ("logits",):
                    found.add_edge(str(sender), str(node), key=key, reader=str(reader), place=place, **weight)
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `from_dict` gives the same graph back."""
        sites = [*self.senders, *self.readers]
        number = {site: index for index, site in enumerate(sites)}
        return {
            "model": self.model,
            "senders": [vars(site) for site in self.senders],
            "readers": [vars(site) for site in self.readers],
            "edges": [[number[a], number[b] - len(self.senders)] for a, b in self.edges],
            "places": list(self.places),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Graph":
        senders, readers = (tuple(Site(**row) for row in data[key]) for key in ("senders", "readers"))
        edges = tuple((senders[a], readers[b]) for a, b in data["edges"])
        return cls(data["model"], senders, readers, edges, tuple(data["places"]))


OTHER = "other"


def refuse(model: Model) -> None:
    """GraphError where the residual stream is no sum of what components write."""
    layers = model.anatomy.layers[""]
    if not layers or model.anatomy.head != "tokens":
        raise GraphError(f"{model.name} has no residual stream that ends in logits for tokens")
    if model._encodes:
        raise GraphError(f"{model.name} has two streams, an encoder's and a decoder's, and a graph has one")
    ends = next((index for index, layer in enumerate(layers) if layer.post_norm), None)
    if ends is not None:
        raise GraphError(
            f"block {ends} of {model.name} ends in a norm, so that its stream is no sum of what components write"
        )


def embeddings(model: Model) -> list[Site]:
    """The senders at the start of the stream; the stream itself where a norm stands behind the embeddings."""
    found = [Site(kind) for kind in ("embed", "pos_embed") if Site(kind) in model.anatomy.taps]
    return [Site("resid_pre", 0)] if model.anatomy.embed_norm is not None or not found else found


def nodes_of(model: Model, layer: int) -> tuple[list[Site], list[Site], bool]:
    """Of one block: its senders before the MLP, what they read, and whether it has an MLP."""
    taps, recipe = model.anatomy.taps, model.anatomy.layers[""][layer].recipe
    mlp = Site("mlp_out", layer) in taps
    if recipe is None or Site("z", layer) not in taps:
        mixes = Site("attn_out", layer) in taps
        if (not mixes and not mlp) or (mixes and mlp and not model.anatomy.layers[""][layer].sequential):
            raise GraphError(f"what block {layer} of {model.name} adds to the stream cannot be told apart")
        return ([Site("attn_out", layer)], [Site("attn_in", layer)], mlp) if mixes else ([], [], mlp)
    counts = {"q": recipe.heads, "k": recipe.kv_heads, "v": recipe.kv_heads}
    inputs = [Site(kind, layer, unit) for kind, count in counts.items() for unit in range(count)]
    return [Site("z", layer, head) for head in range(recipe.heads)], inputs, mlp


def as_graph(model: Model, graph: Graph | None) -> Graph:
    """The graph that is given, or that of the model; GraphError where it is another model's."""
    own = Graph.of(model)
    if graph is None:
        return own
    if graph.edges != own.edges:
        raise GraphError(f"this is the graph of {graph.model}, whose components are not those of {model.name}")
    return graph


def sites_of(names: Sequence["str | Site"], model: Model, among: Sequence[Site]) -> list[Site]:
    """Senders or readers by name or pattern; SiteError where one is not `among` them."""
    found: list[Site] = []
    for name in names:
        wanted = [name] if isinstance(name, Site) else [Site("logits")] if name == "logits" else model.sites(name)
        for site in wanted:
            whole = [other for other in among if other == site or other.whole == site]
            if not whole:
                raise SiteError(f"{site} is none of {', '.join(map(str, among))}")
            found += whole
    return list(dict.fromkeys(found))
