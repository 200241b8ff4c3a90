"""A circuit as the JSON of circuit-tracer's and Neuronpedia's graph pages.

    export.write_graph(circuit, "ioi.json", tokens=["When", " Mary", ...], slug="ioi")

Their nodes stand at tokens: a graph that tells positions apart by number gives each node its token, any other puts all
nodes at the last one. Layers count embeddings as "E" and end in the logits, one above the last block. Links are the
edges' scores; the queries, keys and values of one head are one link, their sum, as their pages have one node a head.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchclamp.circuits.circuit import Circuit
from patchclamp.circuits.graph import GraphError
from patchclamp.circuits.select import strengths
from patchclamp.sites import Site

SCHEMA = 1
_TYPES = {"z": "attention head", "attn_out": "attention", "mlp_out": "mlp", "logits": "logit"}


def graph_json(circuit: Circuit, *, tokens: Sequence[str], slug: str = "circuit") -> dict[str, Any]:
    """`metadata`, `qParams`, `nodes` and `links`; GraphError where there are fewer tokens than positions in use."""
    graph = circuit.graph
    placed = graph.places[0].isdigit()
    values = strengths(circuit.scores) if circuit.scores.of == "nodes" else circuit.scores.values
    flat, mask = values.reshape(len(graph.edges), -1), circuit.mask.reshape(len(graph.edges), -1)
    weights: dict[tuple[str, str], float] = defaultdict(float)
    nodes: dict[str, dict[str, Any]] = {}
    last = 1 + max((site.layer for site in graph.senders if site.layer is not None), default=0)

    def node(site: Site, place: int) -> str:
        at = place if placed and site.kind != "logits" else len(tokens) - 1
        if at >= len(tokens):
            raise GraphError(f"the circuit has an edge at position {at}, and there are {len(tokens)} tokens")
        start = site.layer is None and site.kind != "logits"
        layer = "E" if start else str(last if site.kind == "logits" else site.layer)
        feature = (0 if site.unit is None else 1 + site.unit) if not start else int(site.kind == "pos_embed")
        name = f"{layer}_{feature}_{at}" if site.kind != "mlp_out" else f"{layer}_mlp_{at}"
        nodes[name] = {
            "node_id": name,
            "feature": feature,
            "layer": layer,
            "ctx_idx": at,
            "reverse_ctx_idx": len(tokens) - 1 - at,
            "feature_type": "embedding" if start else _TYPES.get(site.kind, site.kind),
            "token_prob": 0.0,
            "is_target_logit": site.kind == "logits",
            "run_idx": 0,
            "jsNodeId": name,
            "clerp": str(site),
            "influence": None,
            "activation": None,
        }
        return name

    for edge, place in mask.nonzero().tolist():
        sender, reader = graph.edges[edge]
        for owner in graph.node_of(reader) or (reader,):
            weights[node(sender, place), node(owner, place)] += float(flat[edge, place])
    return {
        "metadata": {
            "slug": slug,
            "scan": graph.model,
            "transcoder_list": [],
            "prompt_tokens": list(tokens),
            "prompt": "".join(tokens),
            "node_threshold": None,
            "schema_version": SCHEMA,
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": [{"source": a, "target": b, "weight": weight} for (a, b), weight in weights.items()],
    }


def write_graph(circuit: Circuit, path: str | Path, *, tokens: Sequence[str], slug: str = "circuit") -> None:
    """Write `graph_json` to a file."""
    text = json.dumps(graph_json(circuit, tokens=tokens, slug=slug), indent=1, ensure_ascii=False)
    Path(path).write_text(text, encoding="utf-8")
