"""Ablate one edge of a transformer: what one component adds to what another reads.

    logits = ablate_edge(model, tokens, Site("z", 0, 0), Site("k", 1, 0))                  # to="resample": from others
    for sender, reader, logits in ablate_edges(model, tokens): ...                         # every pair there is

Senders are `embed`, `pos_embed`, heads (`z`) and MLPs (`mlp_out`); readers are the inputs of heads (`q`, `k`, `v`), of
MLPs (`mlp_in`) and the `logits`. A reader takes the residual stream through its layer norm: an ablated one takes the
stream less the sender's share of it, through the same norm, and everybody else reads what they read before.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp import interventions
from patchclamp.model import Model
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

    SiteError where `reader` does not come behind `sender`, or is no reader. For blocks of attention and then an MLP.
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
    """The same for many edges (by default all), two forward passes for each reader."""
    if to not in ("zero", "resample"):
        raise ValueError(f"to={to!r}: an edge is ablated to 'zero' or to 'resample'")
    every = edges(model)
    some = every if some is None else list(some)
    if not set(some) <= set(every):
        raise _no_edge(some, every)
    some = sorted(some, key=every.index)
    streams = {_stream(model, reader) for _, reader in some}
    clean = model.run(tokens, record=[*streams, *{_sum(sender).whole for sender, _ in some}])
    others = _others(len(tokens), seed) if to == "resample" else None
    for reader, group in groupby(some, key=lambda edge: edge[1]):
        senders = [sender for sender, _ in group]
        stream, inputs = _stream(model, reader), tokens.repeat(len(senders), 1)
        shares = [clean[_sum(sender)].expand_as(clean[stream]) for sender in senders]
        without = torch.cat([clean[stream] - (x if others is None else x - x[others]) for x in shares])
        changed = model.run(inputs, do=interventions.patch(stream, without), record=reader, stop=reader)[reader]
        logits = changed if reader.kind == "logits" else None
        if logits is None:
            logits = model.run(inputs, do=interventions.patch(reader, changed)).logits
        assert logits is not None
        yield from zip(senders, [reader] * len(senders), logits.split(len(tokens)), strict=True)


def used(
    model: Model, tokens: Int[Tensor, "prompt pos"], some: Iterable[Edge], tolerance: float = 1e-3
) -> frozenset[Edge]:
    """Of these edges, those whose ablation, to zero or by resampling, changes a logit at the last position.

    `tolerance` is a share of the largest logit.
    """
    clean = model.run(tokens).logits
    assert clean is not None
    least = tolerance * float(clean[:, -1].abs().max())
    found: set[Edge] = set()
    for to in ("zero", "resample"):
        left = [edge for edge in some if edge not in found]
        for sender, reader, logits in ablate_edges(model, tokens, left, to=to):
            if float((logits - clean)[:, -1].abs().max()) > least:
                found.add((sender, reader))
    return frozenset(found)


def _no_edge(some: list[Edge], every: list[Edge]) -> SiteError:
    sender, reader = next(edge for edge in some if edge not in every)
    known = [other for other, behind in every if behind == reader]
    said = f"it reads {', '.join(map(str, known))}" if known else "readers are q, k and v of a head, mlp_in and logits"
    return SiteError(f"no edge leads from {sender} to {reader}: {said}")


def _others(prompts: int, seed: int) -> Int[Tensor, "prompt"]:
    """For each prompt another one."""
    if prompts < 2:
        raise ValueError("to='resample' takes what the sender adds from another prompt, and there is one prompt")
    shift = int(torch.randint(1, prompts, (), generator=torch.Generator().manual_seed(seed)))
    return (torch.arange(prompts) + shift) % prompts


def _sum(sender: Site) -> Site:
    """The site of what the sender adds to the stream."""
    return Site("head_out", sender.layer, sender.unit) if sender.kind == "z" else sender


def _stream(model: Model, reader: Site) -> Site:
    """The site of the stream that the reader takes, in front of its norm."""
    if reader.kind == "logits":
        return Site("resid_post", model.n_layers - 1)
    return Site("resid_mid" if reader.kind == "mlp_in" else "resid_pre", reader.layer)
