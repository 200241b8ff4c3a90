"""Addition modulo a prime, learnt by grokking: `pc.load("organism:modular-addition")`, `...:modular-addition@3000`.

One layer of four heads and ReLU neurons, without norms and without positions, reads `a`, `b`, `=` and gives a + b mod p
at the last token. It learns some of the pairs by heart, and much later all of them (Power et al. 2022,
arXiv:2201.02177), by sums of cosines of a few key frequencies (Nanda et al. 2023, arXiv:2301.05217).

    train_pairs, test_pairs = split(RECIPES["modular-addition"])
    shares = fourier.cosine_shares(logit_table(model.hf))
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ArceeForCausalLM

from patchclamp.organisms.algorithms import fourier
from patchclamp.organisms.algorithms.transformer import adamw, evenly, last_logits, transformer, weight_norm
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights: the pairs are split and the weights drawn by `seed`."""

    p: int = 113
    seed: int = 0
    steps: int = 7200
    checkpoints: int = 60  # after equally many steps, besides the one before training
    share: float = 0.5  # of the unordered pairs, for training
    width: int = 64
    heads: int = 4
    hidden: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 2.0
    warmup: int = 10


RECIPES = {
    "modular-addition": Recipe(),
    "modular-addition:59": Recipe(p=59, share=0.65, steps=3000, checkpoints=20),
}


def untrained(recipe: Recipe) -> ArceeForCausalLM:
    """The network before training: tokens 0 to p - 1 are the numbers, p is `=`."""
    return transformer(
        vocabulary=recipe.p + 1,
        layers=1,
        heads=recipe.heads,
        width=recipe.width,
        hidden=recipe.hidden,
        context=4,
        norm=False,
        rotary=False,
        seed=recipe.seed,
    )


def split(recipe: Recipe) -> tuple[Int[Tensor, "train 2"], Int[Tensor, "test 2"]]:
    """Pairs (a, b) with a >= b for training and for testing.

    A network without positions gives (b, a) what it gives (a, b), so a pair and its mirror are on the same side.
    """
    pairs = torch.tril_indices(recipe.p, recipe.p).T
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(recipe.seed))
    train_size = round(recipe.share * len(pairs))
    return pairs[order[:train_size]], pairs[order[train_size:]]


def prompts(pairs: Int[Tensor, "pair 2"], p: int) -> Int[Tensor, "pair 3"]:
    """The tokens a, b, =."""
    return torch.cat([pairs, torch.full_like(pairs[:, :1], p)], 1)


def pair_loss(model: ArceeForCausalLM, pairs: Int[Tensor, "pair 2"]) -> tuple[Float[Tensor, ""], float]:
    """Mean cross-entropy in nats and accuracy over the pairs and their mirrors, at the last token.

    In float64: in float32 the loss of a pair that is known by heart is rounded to 0, and training starts to jump.
    """
    p = model.config.vocab_size - 1
    answers = pairs.sum(1) % p
    logits = last_logits(model, prompts(pairs, p))
    weights = torch.where(pairs[:, 0] == pairs[:, 1], 1.0, 2.0).double()
    loss = (cross_entropy(logits.double(), answers, reduction="none") * weights).sum() / weights.sum()
    return loss, float(((logits.argmax(-1) == answers) * weights).sum() / weights.sum())


@torch.no_grad()
def logit_table(model: ArceeForCausalLM) -> Float[Tensor, "p p p"]:
    """The logit of c after a, b, =, for all a, b, c."""
    p = model.config.vocab_size - 1
    pairs = torch.tril_indices(p, p).T
    logits = last_logits(model, prompts(pairs, p).to(model.device))[:, :p].cpu()
    table = torch.empty(p, p, p)
    table[pairs[:, 0], pairs[:, 1]] = logits
    table[pairs[:, 1], pairs[:, 0]] = logits
    return table


def train(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[float]:
    """Train into the folder `out`, full batch, or go on from the checkpoint in it; the loss of every step."""
    recipe = RECIPES[name]
    recipe = replace(recipe, seed=recipe.seed if seed is None else seed, steps=steps or recipe.steps)
    model = untrained(recipe)
    torch.nn.Module.to(model, device)
    train_pairs, test_pairs = (pairs.to(device) for pairs in split(recipe))

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        train_loss, train_accuracy = pair_loss(model, train_pairs)
        test_loss, test_accuracy = pair_loss(model, test_pairs)
        return {
            "train_loss": float(train_loss),
            "train_accuracy": train_accuracy,
            "test_loss": float(test_loss),
            "test_accuracy": test_accuracy,
            "weight_norm": weight_norm(model),
            "gini": fourier.gini(fourier.frequency_norms(model.model.embed_tokens.weight[: recipe.p].cpu())),
        }

    losses = fit(
        model,
        lambda step: pair_loss(model, train_pairs)[0],
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=adamw(model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay),
        rate=lambda step: recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup),
        snapshots=evenly(recipe.steps, recipe.checkpoints),
        measure=measure,
        measure_every=100,
        clip=None,
        progress=progress,
    )
    shares = fourier.cosine_shares(logit_table(model))
    keys = fourier.key_frequencies(shares)
    found = {"key_frequencies": keys.tolist(), "explained": round(float(shares[keys - 1].sum()), 4)}
    store(model, out, recipe, losses, extra=measure(recipe.steps) | found)
    return losses


def truth(name: str, folder: Path) -> Truth:
    """The sampler draws held-out pairs; `features` are the directions in the embedding along which the cosine and the
    sine of each key frequency are written, at `embed`, as unit vectors ("cos 14", "sin 14").
    """
    recipe = RECIPES[name]
    model = ArceeForCausalLM.from_pretrained(folder)
    keys = fourier.key_frequencies(fourier.cosine_shares(logit_table(model)))
    waves = fourier.fourier_basis(recipe.p) @ model.model.embed_tokens.weight[: recipe.p].detach().double()
    features = {}
    for key in keys.tolist():
        for wave, row in (("cos", 2 * key - 1), ("sin", 2 * key)):
            features[f"{wave} {key}"] = (waves[row] / waves[row].norm()).float()

    def sample(n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        _, pairs = split(recipe)
        pairs = pairs[torch.randint(len(pairs), (n,), generator=generator)]
        mirrored = torch.rand(n, generator=generator) < 0.5
        pairs = torch.where(mirrored[:, None], pairs.flip(1), pairs)
        return prompts(pairs, recipe.p), pairs.sum(1) % recipe.p

    def whole(side: int) -> tuple[Tensor, Tensor]:
        pairs = split(recipe)[side]
        pairs = torch.cat([pairs, pairs[pairs[:, 0] != pairs[:, 1]].flip(1)])
        return prompts(pairs, recipe.p), pairs.sum(1) % recipe.p

    return Truth(
        name=name,
        features=features,
        splits={"train": lambda: whole(0), "test": lambda: whole(1)},
        sampler=sample,
    )
