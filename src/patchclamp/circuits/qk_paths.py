"""One attention score by the pairs of paths that make it: the virtual QK circuits of a head.

    table = circuits.expand_score(model, prompt, head="1.0", query=-1, key=4)
    table.rows()            # embed → query × embed → head 0.0 → key: +24.1, ...

A score is bilinear in the stream at the query and at the key (norm scales and earlier patterns held), so that it is the
sum over pairs of paths (Elhage et al. 2021, Q- and K-composition). Rotary positions need no formula of their own: each
path's share of the stream is put into the model itself, and its query and key are read there.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.circuits.paths import REST, Frozen, PathError, Paths, Row
from patchclamp.interventions import patch
from patchclamp.model import Model
from patchclamp.sites import Site

Component = tuple[tuple[str, ...], Float[Tensor, "pos d_model"]]
_WORST = 1e-3


def expand_score(
    model: Model,
    prompt: str | list[int] | Int[Tensor, "pos"],
    *,
    head: str,
    query: int = -1,
    key: int,
    top: int = 20,
    most: int = 128,
) -> Paths:
    """The score of `head` ("layer.head") between two positions, as a sum over pairs (path to query, path to key).

    Up to `most` paths are told apart on each side; where there are more, those through one head of a layer are one.
    Raises `PathError` where scores are not bilinear in the stream: norms of queries and keys, position biases, caps.
    """
    layer, index = _parsed(model, head)
    frozen = Frozen.of(model, prompt)
    ids = model.tokens(prompt).ids
    where = Site("scores", layer)
    full = model.run(prompt, record=[str(where), f"q.{layer}", f"k.{layer}"])
    kv = model.weights.kv_head(layer, index)
    scores = full[where][0, index].double()
    q, k = full[f"q.{layer}"][0, :, index].double(), full[f"k.{layer}"][0, :, kv].double()
    scale = _scale(model, head, q @ k.T, scores)
    length = len(scores)
    at, to = query % length, key % length
    if to > at and not torch.isfinite(scores[at, to]):
        raise PathError(f"head {head} does not attend from position {at} ahead to {to}")

    parts = components(frozen, layer, most)
    bias = frozen.norms[layer].bias.expand(length, -1)
    reads = torch.stack([*(frozen.read(layer, x) for _, x in parts), bias, torch.zeros_like(bias)])
    do = patch(Site("attn_in", layer), reads.to(device=model.device, dtype=model.dtype))
    run = model.run(ids.expand(len(reads), -1), do=[do], record=[f"q.{layer}", f"k.{layer}"], stop=True)
    queries, keys = (run[f"q.{layer}"][:, at, index].double(), run[f"k.{layer}"][:, to, kv].double())
    # The last row is what biases alone make; it goes with the norm's bias and out of all others.
    queries, keys = (torch.cat([x[:-2] - x[-1], x[-2:-1]]) for x in (queries, keys))
    for made, whole, name in ((queries, q[at], "queries"), (keys, k[to], "keys")):
        if float((made.sum(0) - whole).abs().max()) > _WORST * max(1e-3, float(whole.abs().max())):
            why = "are no linear map of its stream: they have a norm of their own"
            raise PathError(f"{name} of layer {layer} of {model.name} {why}")
    table = scale * queries @ keys.T
    names = [" → ".join(nodes) for nodes, _ in parts] + ["bias"]
    rows = [
        Row((f"{names[i]} → query", f"{names[j]} → key"), float(table[i, j]))
        for i, j in (table != 0).nonzero().tolist()
    ]
    target = f"score {head} [{at}, {to}]"
    ordered = tuple(sorted(rows, key=lambda row: -abs(row.contribution)))
    return Paths(model.name, target, float(scores[at, to]), ordered, top, " × ")


def components(frozen: Frozen, layer: int, most: int) -> list[Component]:
    """The stream before `layer` as a sum over paths, each with what it wrote at every position."""
    parts: list[Component] = [((name,), x) for name, x in frozen.embeddings]
    for below in range(layer):
        heads = range(len(frozen.patterns[below]))
        if len(parts) * (1 + len(heads)) <= most:
            moved = [
                ((*nodes, f"head {below}.{head}"), frozen.move(below, head, x)) for head in heads for nodes, x in parts
            ]
        else:
            moved = [((REST, f"head {below}.{head}"), frozen.heads[below, head]) for head in heads]
        moved += [((f"bias {below}",), frozen.biases[below]), ((f"mlp {below}",), frozen.mlps[below])]
        parts += [(nodes, x) for nodes, x in moved if bool((x != 0).any())]
    return parts


def _parsed(model: Model, head: str) -> tuple[int, int]:
    site = model.sites(f"z.{head}")
    if len(site) != 1 or site[0].layer is None or site[0].unit is None:
        raise PathError(f"head={head!r} names {len(site)} places; write one head as layer.head, such as '1.0'")
    return site[0].layer, site[0].unit


def _scale(model: Model, head: str, products: Tensor, scores: Tensor) -> float:
    """The number between q · k and the score, from all pairs that are not masked."""
    seen = torch.isfinite(scores) & (scores > -1e4)
    products, scores = products[seen], scores[seen]
    size = float(products.pow(2).sum())
    scale = float((products * scores).sum()) / size if size > 0 else 1.0
    if float((products * scale - scores).abs().max()) > _WORST * max(1e-3, float(scores.abs().max())):
        raise PathError(f"scores of head {head} of {model.name} are not q · k times a number: a position bias, a cap")
    return scale
