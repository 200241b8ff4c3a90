"""Induction heads, formed in training: `pc.load("organism:induction")`, and `...:induction@600` before they are there.

Two layers of attention alone, with rotary positions, read random tokens that repeat after a lag which varies from row
to row. Heads that attend to the token before, and heads that attend to what followed the same token the last time,
form together, and the loss falls at once (Elhage et al. 2021; Olsson et al. 2022, arXiv:2209.11895).

    scores = head_scores(model, *repeated(64, seed=0))
    scores["prefix_matching"], scores["previous_token"]        # Float[layer head]
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ArceeForCausalLM, AutoModelForCausalLM

from patchclamp.model import Model, wrap
from patchclamp.organisms.algorithms.transformer import adamw, transformer, warm_cosine
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth
from patchclamp.sites import Site

BEGIN, VOCABULARY, LENGTH = 0, 64, 48
LAGS = (8, 24)  # shortest and longest, both included
HEAD_SCORE = 0.5  # a head with this score is a previous-token head, or an induction head
LAYERS = 2
CHECKPOINTS = (*range(0, 1000, 100), *range(1000, 4001, 300))


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights."""

    seed: int = 0
    steps: int = 4000
    batch: int = 32
    width: int = 64
    heads: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup: int = 50


RECIPES = {"induction": Recipe()}


def untrained(recipe: Recipe) -> ArceeForCausalLM:
    """The network before training: attention alone, without norms."""
    return transformer(
        vocabulary=VOCABULARY,
        layers=LAYERS,
        heads=recipe.heads,
        width=recipe.width,
        hidden=0,
        context=2 * LENGTH,
        norm=False,
        seed=recipe.seed,
    )


def repeated(n: int, seed: int, lags: tuple[int, int] = LAGS) -> tuple[Int[Tensor, "n 48"], Int[Tensor, "n"]]:
    """Rows of BEGIN and random tokens that repeat over and over, each row after a lag of its own; tokens and lags."""
    generator = torch.Generator().manual_seed(seed)
    lag = torch.randint(lags[0], lags[1] + 1, (n, 1), generator=generator)
    fresh = torch.randint(1, VOCABULARY, (n, LENGTH - 1), generator=generator)
    again = fresh.gather(1, torch.arange(LENGTH - 1) % lag)
    return torch.cat([torch.full((n, 1), BEGIN), again], 1), lag[:, 0]


def matches(tokens: Int[Tensor, "row pos"]) -> Bool[Tensor, "row query key"]:
    """Where an induction head is to look: at keys whose token before is the query's token."""
    before = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], 1)
    return (tokens[:, :, None] == before[:, None]).tril()


def head_scores(model: Model, tokens: Int[Tensor, "row pos"]) -> dict[str, Float[Tensor, "layer head"]]:
    """How much attention each head pays on average to the tokens that make it what it is.

    `prefix_matching`: to all tokens that follow an earlier occurrence of the query's, over the queries that have one
    (Olsson et al. 2022). `previous_token`: to the token before, over all queries but the first.
    """
    run = model.run(tokens, record="pattern.*")
    patterns = torch.stack([run[Site("pattern", layer)] for layer in range(model.n_layers)])
    where = matches(tokens)
    queries = where.any(-1)
    found = (patterns * where[:, None]).sum(-1) * queries[:, None]
    return {
        "prefix_matching": found.sum((1, 3)) / queries.sum(),
        "previous_token": patterns.diagonal(-1, 3, 4).mean((1, 3)),
    }


def repeated_loss(model: Any, tokens: Int[Tensor, "row pos"], lag: Int[Tensor, "row"]) -> dict[str, float]:
    """Mean loss in nats, and accuracy, of the tokens that repeat, and the loss of the others.

    The first token that repeats is among the others: nothing before it says that the lag is over.
    """
    logits = model(tokens, use_cache=False).logits[:, :-1].detach()
    losses = cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    again = torch.arange(1, tokens.shape[1], device=tokens.device) > lag[:, None] + 1
    right = logits.argmax(-1) == tokens[:, 1:]
    return {
        "repeated_loss": float(losses[again].mean()),
        "repeated_accuracy": float(right[again].float().mean()),
        "fresh_loss": float(losses[~again].mean()),
    }


def train(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[float]:
    """Train into the folder `out`, or go on from the checkpoint in it; the loss of every step."""
    recipe = RECIPES[name]
    recipe = replace(recipe, seed=recipe.seed if seed is None else seed, steps=steps or recipe.steps)
    model = untrained(recipe)
    torch.nn.Module.to(model, device)
    tests = [side.to(device) for side in repeated(64, seed=0)]
    watched = wrap(model)

    def loss_at(step: int) -> Float[Tensor, ""]:
        tokens = repeated(recipe.batch, (recipe.seed + 1) * 1_000_000 + step)[0].to(device)
        return cross_entropy(model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        scores = head_scores(watched, tests[0])
        return repeated_loss(model, *tests) | {kind: float(score.max()) for kind, score in scores.items()}

    losses = fit(
        model,
        loss_at,
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=adamw(model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay),
        rate=lambda step: warm_cosine(step, recipe.steps, recipe.learning_rate, recipe.warmup),
        snapshots=CHECKPOINTS,
        measure=measure,
        measure_every=20,
        progress=progress,
    )
    store(model, out, recipe, losses, extra=measure(recipe.steps))
    return losses


def truth(name: str, folder: Path) -> Truth:
    """The heads that score above a half, as nodes `z.LAYER.HEAD`, and the edges from each previous-token head to the
    keys of each induction head, and from there to the logits. The sampler draws rows cut where a token repeats.
    """
    scores = head_scores(wrap(AutoModelForCausalLM.from_pretrained(folder)), repeated(64, seed=0)[0])
    previous, induction = (
        [Site("z", *place) for place in (scores[kind] > HEAD_SCORE).nonzero().tolist()]
        for kind in ("previous_token", "prefix_matching")
    )
    edges = {(sender, Site("k", reader.layer, reader.unit)) for sender in previous for reader in induction}
    edges |= {(head, Site("logits")) for head in induction}

    def sample(n: int, seed: int) -> tuple[Tensor, Tensor]:
        tokens, lag = repeated(n, seed)
        draw = torch.rand(n, generator=torch.Generator().manual_seed(seed))
        last = lag + 2 + (draw * (LENGTH - 2 - lag)).long()  # of the answer: at the earliest the second to repeat
        answers = tokens.gather(1, last[:, None])[:, 0]
        return tokens.masked_fill(torch.arange(LENGTH) >= last[:, None], BEGIN), answers

    return Truth(name=name, nodes=frozenset(previous + induction), edges=frozenset(edges), sampler=sample)
