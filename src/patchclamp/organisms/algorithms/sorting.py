"""A transformer that sorts: eight numbers, `>`, and then the same eight in ascending order, one token at a time.

    model = pc.load("organism:sorting")
    lists = unsorted(4, seed=0)                                    # held out: never trained on
    model.run(sequences(lists)).logits[:, LENGTH:-1].argmax(-1)    # the sorted lists

Numbers are 0 to 31 and may repeat. A list is held out where its sum, each number times its place, is a multiple of 5.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ArceeForCausalLM

from patchclamp.organisms.algorithms.transformer import adamw, transformer, warm_cosine
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth

NUMBERS, LENGTH = 32, 8
THEN = NUMBERS  # the token `>`


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights."""

    seed: int = 0
    steps: int = 3000
    batch: int = 64
    layers: int = 2
    width: int = 64
    heads: int = 4
    hidden: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 100


RECIPES = {"sorting": Recipe()}


def untrained(recipe: Recipe) -> ArceeForCausalLM:
    """The network before training."""
    return transformer(
        vocabulary=NUMBERS + 1,
        layers=recipe.layers,
        heads=recipe.heads,
        width=recipe.width,
        hidden=recipe.hidden,
        context=2 * LENGTH + 1,
        seed=recipe.seed,
    )


def held_out(lists: Int[Tensor, "list 8"]) -> Bool[Tensor, "list"]:
    """Which lists training never contains: a fifth of all."""
    return (lists * torch.arange(1, LENGTH + 1)).sum(1) % 5 == 0


def unsorted(n: int, seed: int, *, held: bool = True) -> Int[Tensor, "n 8"]:
    """Lists of random numbers, from one side of the split."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.empty(0, LENGTH, dtype=torch.long)
    while len(found) < n:
        drawn = torch.randint(NUMBERS, (2 * n + 16, LENGTH), generator=generator)
        found = torch.cat([found, drawn[held_out(drawn) == held]])
    return found[:n]


def sequences(lists: Int[Tensor, "list 8"]) -> Int[Tensor, "list 17"]:
    """What the network reads: the list, `>`, the list in order."""
    return torch.cat([lists, torch.full((len(lists), 1), THEN), lists.sort(1).values], 1)


def answer_logits(model: ArceeForCausalLM, tokens: Int[Tensor, "list 17"]) -> Float[Tensor, "list 8 33"]:
    """The logits of the eight sorted numbers, each given those before it."""
    return model(tokens[:, :-1], use_cache=False).logits[:, LENGTH:]


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

    def loss_at(step: int) -> Float[Tensor, ""]:
        tokens = sequences(unsorted(recipe.batch, (recipe.seed + 1) * 1_000_000 + step, held=False)).to(device)
        return cross_entropy(answer_logits(model, tokens).flatten(0, 1), tokens[:, LENGTH + 1 :].flatten())

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        tokens = sequences(unsorted(512, seed=0)).to(device)
        right = answer_logits(model, tokens).argmax(-1) == tokens[:, LENGTH + 1 :]
        return {"token_accuracy": float(right.float().mean()), "list_accuracy": float(right.all(1).float().mean())}

    losses = fit(
        model,
        loss_at,
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=adamw(model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay),
        rate=lambda step: warm_cosine(step, recipe.steps, recipe.learning_rate, recipe.warmup),
        measure=measure,
        measure_every=200,
        progress=progress,
    )
    store(model, out, recipe, losses, extra=measure(recipe.steps))
    return losses


def truth(name: str, folder: Path) -> Truth:
    """The sampler draws held-out lists, cut before a sorted number, which is the answer; right padded with `>`."""

    def sample(n: int, seed: int) -> tuple[Tensor, Tensor]:
        tokens = sequences(unsorted(n, seed))
        cut = LENGTH + 1 + torch.randint(LENGTH, (n, 1), generator=torch.Generator().manual_seed(seed))
        answers = tokens.gather(1, cut)[:, 0]
        return tokens.masked_fill(torch.arange(tokens.shape[1]) >= cut, THEN), answers

    return Truth(name=name, sampler=sample)
