"""Parity of three bits among junk bits, learnt by an MLP: `pc.load("organism:sparse-parity")`, or `sparse-parity:12`.

    model = pc.load("organism:sparse-parity@400")           # knows the training data by heart, and nothing else
    inputs, answers = pc.organisms.truth("sparse-parity").split("test")
    model.run({"inputs": inputs}, record="module:activations.0").logits.argmax(-1)

Bits are -1 or 1, the first three are those that count, and the class is 1 where their product is 1. The more junk there
is, the longer the network gets by on memory before it generalises (Miller et al. 2023, arXiv:2310.17247): with 24 junk
bits it groks, with none there is nothing to grok.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import multi_margin_loss

from patchclamp.organisms.algorithms.transformer import adamw, evenly, weight_norm
from patchclamp.organisms.networks import MLP, MLPConfig
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth

BITS = 3
TESTS = 2000


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights: the data and the weights are drawn by `seed`."""

    junk: int = 24
    seed: int = 0
    examples: int = 600  # to train on
    steps: int = 2000
    checkpoints: int = 20  # after equally many steps, besides the one before training
    hidden: int = 128
    learning_rate: float = 1e-2
    weight_decay: float = 0.3


RECIPES = {
    "sparse-parity": Recipe(),
    "sparse-parity:12": Recipe(junk=12),
    "sparse-parity:0": Recipe(junk=0),
}


def untrained(recipe: Recipe) -> MLP:
    """The network before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return MLP(MLPConfig(widths=(BITS + recipe.junk, recipe.hidden, 2)))


def examples(recipe: Recipe, side: str) -> tuple[Float[Tensor, "example bits"], Int[Tensor, "example"]]:
    """The inputs and classes of one side of the split, "train" or "test".

    Without junk the two sides are the same eight inputs; with 24 junk bits of 134 million hardly one is on both.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    sizes = [recipe.examples, TESTS]
    inputs = torch.randint(2, (sum(sizes), BITS + recipe.junk), generator=generator).float() * 2 - 1
    inputs = inputs.split(sizes)[("train", "test").index(side)]
    return inputs, parity(inputs)


def parity(inputs: Float[Tensor, "example bits"]) -> Int[Tensor, "example"]:
    """1 where the product of the bits that count is 1, else 0.

    >>> parity(torch.tensor([[1.0, -1.0, -1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, 1.0, 1.0]])).tolist()
    [1, 0]
    """
    return (inputs[:, :BITS].prod(1) > 0).long()


def counting_share(network: MLP) -> float:
    """The share of the first layer's squared weights that is on the bits that count."""
    (weight, *_) = network.layers[0].parameters()
    squares = weight.detach().square().sum(0)
    return float(squares[:BITS].sum() / squares.sum())


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
    network = untrained(recipe)
    torch.nn.Module.to(network, device)
    sides = {side: [part.to(device) for part in examples(recipe, side)] for side in ("train", "test")}

    def loss_of(side: str) -> Float[Tensor, ""]:
        inputs, classes = sides[side]
        return multi_margin_loss(network(inputs).logits, classes)  # the hinge: no margin beyond 1 pays

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        row = {"weight_norm": weight_norm(network), "counting_share": counting_share(network)}
        for side, (inputs, classes) in sides.items():
            right = network(inputs).logits.argmax(-1) == classes
            row |= {f"{side}_loss": float(loss_of(side)), f"{side}_accuracy": float(right.double().mean())}
        return row

    losses = fit(
        network,
        lambda step: loss_of("train"),
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=adamw(network, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay),
        snapshots=evenly(recipe.steps, recipe.checkpoints),
        measure=measure,
        measure_every=25,
        clip=None,
        progress=progress,
    )
    store(network, out, recipe, losses, extra=measure(recipe.steps))
    return losses


def truth(name: str, folder: Path) -> Truth:
    """`features` are the bits that count, as directions in the input; the sampler draws from the test side."""
    recipe = RECIPES[name]
    eye = torch.eye(BITS + recipe.junk)

    def sample(n: int, seed: int) -> tuple[Tensor, Tensor]:
        inputs, classes = examples(recipe, "test")
        chosen = torch.randint(TESTS, (n,), generator=torch.Generator().manual_seed(seed))
        return inputs[chosen], classes[chosen]

    return Truth(
        name=name,
        features={f"bit {bit}": eye[bit] for bit in range(BITS)},
        splits={side: lambda side=side: examples(recipe, side) for side in ("train", "test")},
        sampler=sample,
    )
