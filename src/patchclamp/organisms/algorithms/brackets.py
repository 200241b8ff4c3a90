"""A transformer that tells whether brackets balance: `pc.load("organism:brackets")`.

It reads BEGIN, some brackets, END, and says at END whether every bracket is closed (token BALANCED or UNBALANCED).

    tokens, answers = pc.organisms.truth("brackets").sample(32, seed=0)        # right padded; never trained on
    model.run(tokens, attention_mask=tokens != PAD)

Half of the strings are drawn balanced. The others are such strings with something changed: shuffled, one bracket turned
round, one moved, or two exchanged; some still balance, so that two thirds do in all. A string is held out by a hash
that never changes.
"""

import random
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ArceeForCausalLM

from patchclamp.organisms.algorithms.transformer import adamw, transformer, warm_cosine
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth

PAD, BEGIN, OPEN, CLOSE, END, BALANCED, UNBALANCED = range(7)
LONGEST = 32


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights."""

    seed: int = 0
    steps: int = 2500
    batch: int = 64
    layers: int = 3
    width: int = 48
    heads: int = 4
    hidden: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 100


RECIPES = {"brackets": Recipe()}


def untrained(recipe: Recipe) -> ArceeForCausalLM:
    """The network before training."""
    return transformer(
        vocabulary=UNBALANCED + 1,
        layers=recipe.layers,
        heads=recipe.heads,
        width=recipe.width,
        hidden=recipe.hidden,
        context=LONGEST + 2,
        seed=recipe.seed,
    )


def balanced(brackets: str) -> bool:
    """Whether every bracket is closed, and none before it was opened.

    >>> balanced("(()())"), balanced("())(")
    (True, False)
    """
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            return False
    return depth == 0


def held_out(brackets: str) -> bool:
    """Whether training never contains this string: a fifth of the strings of 12 brackets or more."""
    return len(brackets) >= 12 and zlib.crc32(brackets.encode()) % 5 == 0


def strings(n: int, rng: random.Random, *, held: bool) -> list[str]:
    """`n` strings of 2 to 32 brackets from one side of the split; about two thirds of them balance."""
    found: list[str] = []
    while len(found) < n:
        brackets = _walk(2 * rng.randint(1, LONGEST // 2), rng)
        if rng.random() < 0.5:
            brackets = _spoilt(brackets, rng)
        if held_out(brackets) == held:
            found.append(brackets)
    return found


def encode(some: list[str]) -> tuple[Int[Tensor, "string pos"], Int[Tensor, "string"]]:
    """Tokens, right padded, and the answer to each: BALANCED or UNBALANCED."""
    rows = torch.full((len(some), max(map(len, some)) + 2), PAD)
    for row, brackets in zip(rows, some, strict=True):
        inner = [OPEN if bracket == "(" else CLOSE for bracket in brackets]
        row[: len(inner) + 2] = torch.tensor([BEGIN, *inner, END])
    return rows, torch.tensor([BALANCED if balanced(brackets) else UNBALANCED for brackets in some])


def end_logits(model: ArceeForCausalLM, tokens: Int[Tensor, "string pos"]) -> Float[Tensor, "string vocabulary"]:
    """The logits at END. No mask is needed: padding is on the right, and attention looks to the left."""
    end = (tokens == END).int().argmax(1)
    states = model.model(tokens, use_cache=False).last_hidden_state
    return model.lm_head(states[torch.arange(len(tokens)), end])


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
    tests = [side.to(device) for side in encode(strings(1000, random.Random("brackets/test"), held=True))]

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng = random.Random(f"brackets/{recipe.seed}/{step}")
        tokens, answers = (side.to(device) for side in encode(strings(recipe.batch, rng, held=False)))
        return cross_entropy(end_logits(model, tokens), answers)

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        logits = end_logits(model, tests[0])
        return {
            "test_accuracy": float((logits.argmax(-1) == tests[1]).float().mean()),
            "test_loss": float(cross_entropy(logits, tests[1])),
        }

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
    """The sampler draws held-out strings, right padded, with the answer at END."""
    return Truth(name=name, sampler=lambda n, seed: encode(strings(n, random.Random(seed), held=True)))


def _walk(length: int, rng: random.Random) -> str:
    """A balanced string: at each step up or down by a coin, where both can still end at zero."""
    depth, brackets = 0, ""
    for left in range(length, 0, -1):
        up = depth == 0 or (depth < left and rng.random() < 0.5)
        brackets += "(" if up else ")"
        depth += 1 if up else -1
    return brackets


def _spoilt(brackets: str, rng: random.Random) -> str:
    """The same string with something changed that as a rule leaves it unbalanced."""
    marks = list(brackets)
    match rng.randrange(4):
        case 0:
            rng.shuffle(marks)
        case 1:
            at = rng.randrange(len(marks))
            marks[at] = ")" if marks[at] == "(" else "("
        case 2:
            marks.insert(rng.randrange(len(marks)), marks.pop(rng.randrange(len(marks))))
        case _:
            opened = rng.choice([i for i, mark in enumerate(marks) if mark == "("])
            closed = rng.choice([i for i, mark in enumerate(marks) if mark == ")"])
            marks[opened], marks[closed] = marks[closed], marks[opened]
    return "".join(marks)
