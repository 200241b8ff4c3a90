"""Ablate one edge of a transformer: what one component adds to what another reads.

    logits = ablate_edge(model, tokens, Site("z", 0, 0), Site("k", 1, 0))                  # to="resample": from others
    for sender, reader, logits in ablate_edges(model, tokens): ...                         # every pair there is

Senders are `embed`, `pos_embed`, heads (`z`) and MLPs (`mlp_out`); readers are the inputs of heads (`q`, `k`, `v`), of
MLPs (`mlp_in`) and the `logits`. A reader takes the residual stream through its layer norm: an ablated one takes the
stream less the sender's share of it, through the same norm, and everybody else reads what they read before.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp import interventions
from patchclamp.model import Model, Run
from patchclamp.sites import Site, SiteError

Edge = tuple[Site, Site]
To = Literal["zero", "resample"]


def edges(model: Model) -> list[Edge]:
    """All pairs of a sender and a reader behind it, by reader."""
    found = []
    senders = [Site(kind) for kind in ("embed", "pos_embed") if Site(kind) in model.anatomy.taps]
    for layer in range(model.n_layers):
        heads = range(model.n_heads)
        found += [(sender, Site(kind, layer, head)) for kind in "qkv" for head in heads for sender in senders]
        senders = [*senders, *(Site("z", layer, head) for head in heads)]
        found += [(sender, Site("mlp_in", layer)) for sender in senders]
        senders = [*senders, Site("mlp_out", layer)]
    return found + [(sender, Site("logits")) for sender in senders]


def ablate_edge(
    model: Model, tokens: Int[Tensor, "prompt pos"], sender: Site, reader: Site, *, to: To = "zero", seed: int = 0
) -> Float[Tensor, "prompt pos vocab"]:
    """The logits when `reader` goes without what `sender` adds to the stream, or has another prompt's ("resample").

    SiteError where `reader` does not come behind `sender`, or is no reader. For GPT-2's architecture: queries, keys and
    values are projections of one normed stream, without rotary positions or norms of their own.
    """
    return next(ablate_edges(model, tokens, [(sender, reader)], to=to, seed=seed))[2]


def ablate_edges(
    model: Model,
    tokens: Int[Tensor, "prompt pos"],
    some: Iterable[Edge] | None = None,
    *,
    to: To = "zero",
    seed: int = 0,
) -> Iterator[tuple[Site, Site, Float[Tensor, "prompt pos vocab"]]]:
    """The same for many edges (by default all), with one forward pass for each reader."""
    if to not in ("zero", "resample"):
        raise ValueError(f"to={to!r}: an edge is ablated to 'zero' or to 'resample'")
    every = edges(model)
    some = every if some is None else sorted(some, key=every.index if set(some) <= set(every) else _refuse(some, every))
    layers = range(model.n_layers)
    streams = [Site(kind, layer) for kind in ("resid_pre", "resid_mid") for layer in layers]
    senders = list(dict.fromkeys(sender.whole for sender, _ in some))
    clean = model.run(tokens, record=[*streams, Site("resid_post", model.n_layers - 1), *senders])
    others = _others(len(tokens), seed) if to == "resample" else None
    for reader, group in groupby(some, key=lambda edge: edge[1]):
        from_whom = [sender for sender, _ in group]
        shares = [_share(model, clean, sender) for sender in from_whom]
        stream = clean[_stream(model, reader)]
        without = torch.cat([stream - x if others is None else stream - x + x[others] for x in shares])
        logits = _read(model, tokens.repeat(len(shares), 1), reader, without)
        yield from zip(from_whom, [reader] * len(shares), logits.split(len(tokens)), strict=True)


def matters(model: Model, tokens: Int[Tensor, "prompt pos"], sender: Site, reader: Site, tolerance: float = 1e-3) -> bool:
    """Whether ablating the edge changes any logit at the last position, by more than `tolerance`."""
    clean = model.run(tokens).logits
    assert clean is not None
    return bool((ablate_edge(model, tokens, sender, reader) - clean)[:, -1].abs().max() > tolerance)


def _refuse(some: Iterable[Edge], every: list[Edge]) -> Any:
    sender, reader = next(edge for edge in some if edge not in every)
    known = [other for other, behind in every if behind == reader]
    said = f"it reads {', '.join(map(str, known))}" if known else "readers are q, k and v of a head, mlp_in and logits"
    raise SiteError(f"no edge leads from {sender} to {reader}: {said}")


def _others(prompts: int, seed: int) -> Int[Tensor, "prompt"]:
    """For each prompt another one."""
    if prompts < 2:
        raise ValueError("to='resample' takes what the sender adds from another prompt, and there is one prompt")
    shift = int(torch.randint(1, prompts, (), generator=torch.Generator().manual_seed(seed)))
    return (torch.arange(prompts) + shift) % prompts


def _share(model: Model, run: Run, sender: Site) -> Float[Tensor, "prompt pos d_model"]:
    """What the sender adds to the residual stream."""
    whole = run[sender.whole]
    if sender.kind == "z":
        return whole[:, :, sender.unit] @ model.weights.W_O[sender.layer, sender.unit]
    return whole.expand(len(run[Site("resid_pre", 0)]), -1, -1)


def _stream(model: Model, reader: Site) -> Site:
    if reader.kind == "logits":
        return Site("resid_post", model.n_layers - 1)
    return Site("resid_mid" if reader.kind == "mlp_in" else "resid_pre", reader.layer)


def _read(
    model: Model, tokens: Int[Tensor, "prompt pos"], reader: Site, stream: Float[Tensor, "prompt pos d_model"]
) -> Float[Tensor, "prompt pos vocab"]:
    """The logits when `reader`, and it alone, reads `stream`."""
    layers, weights = model.anatomy.layers[""], model.weights
    with torch.no_grad():
        if reader.kind == "logits":
            return _norm(model, model.anatomy.final_norm)(stream) @ weights.W_U + weights.b_U
        layer, head = reader.layer, reader.unit
        assert layer is not None
        value = _norm(model, layers[layer].norm2 if reader.kind == "mlp_in" else layers[layer].norm1)(stream)
        if reader.kind != "mlp_in":
            table = {"q": (weights.W_Q, weights.b_Q), "k": (weights.W_K, weights.b_K), "v": (weights.W_V, weights.b_V)}
            weight, bias = table[reader.kind]
            value = value @ weight[layer, head] + bias[layer, head]
        logits = model.run(tokens, do=interventions.patch(reader, value)).logits
    assert logits is not None
    return logits


def _norm(model: Model, path: str | None) -> Any:
    return model.hf.get_submodule(path) if path else torch.nn.Identity()
