"""Composition in a finite group: `pc.load("organism:groups:s4")`, and other seeds `groups:s4-1`, `groups:s4-2`.

    model = pc.load("organism:groups:s4")
    inputs, answers = pc.organisms.truth("groups:s4").split("test")
    model.run({"inputs": inputs}, record="module:activations.0").logits.argmax(-1)
    character_shares(logit_table(model.hf), group("s4"))        # which irreps explain the logits

An MLP with one hidden layer reads a and b, one-hot and side by side, and gives the number of their product. Its logits
are sums of character(a b c^-1) over the irreps of the group (Chughtai et al. 2023, arXiv:2302.03025); how much each
irrep has of them differs from seed to seed. `groups:s4-random` learnt a random table and no group's: the control, which
no irrep explains, and which cannot generalise.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from patchclamp.organisms.algorithms.finite_groups import character_shares, group
from patchclamp.organisms.algorithms.transformer import adamw, evenly, weight_norm
from patchclamp.organisms.networks import MLP, MLPConfig
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth

KEY_SHARE = 0.005  # of the logits' variance: an irrep that explains less is no key irrep


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights: the pairs are split and the weights drawn by `seed`."""

    group: str = "s4"
    seed: int = 0
    random_table: bool = False
    share: float = 0.8  # of the pairs, for training
    steps: int = 3000
    checkpoints: int = 0  # after equally many steps, besides the one before training
    hidden: int = 256
    learning_rate: float = 5e-3
    weight_decay: float = 2.0


RECIPES = {
    "groups:s4": Recipe(share=0.85, checkpoints=20),
    "groups:s4-1": Recipe(share=0.85, seed=1),
    "groups:s4-2": Recipe(share=0.85, seed=2),
    "groups:a4": Recipe("a4", share=0.9),
    "groups:a4-1": Recipe("a4", share=0.9, seed=1),
    "groups:a5": Recipe("a5"),
    "groups:a5-1": Recipe("a5", share=0.85, seed=1),
    "groups:c30": Recipe("c30"),
    "groups:c30-1": Recipe("c30", seed=1),
    "groups:d12": Recipe("d12"),
    "groups:d12-1": Recipe("d12", seed=1),
    "groups:s4-random": Recipe(share=0.85, random_table=True),
}


def untrained(recipe: Recipe) -> MLP:
    """The network before training."""
    n = len(group(recipe.group))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return MLP(MLPConfig(widths=(2 * n, recipe.hidden, n)))


def products(recipe: Recipe) -> Int[Tensor, "n n"]:
    """What the network learns: the group's table, or for the control a table of numbers drawn at random."""
    table = group(recipe.group).table
    if not recipe.random_table:
        return table
    return torch.randint(len(table), table.shape, generator=torch.Generator().manual_seed(recipe.seed))


def split(recipe: Recipe) -> tuple[Int[Tensor, "train 2"], Int[Tensor, "test 2"]]:
    """Pairs (a, b) for training and for testing."""
    n = len(group(recipe.group))
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(recipe.seed))
    train_size = round(recipe.share * len(pairs))
    return pairs[order[:train_size]], pairs[order[train_size:]]


def inputs(pairs: Int[Tensor, "pair 2"], n: int) -> Float[Tensor, "pair inputs"]:
    """What the network reads: both elements, one-hot, side by side."""
    return one_hot(pairs, n).flatten(1).float()


def pair_logits(network: MLP, pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, "pair n"]:
    """The logits of `network(inputs(pairs, n))`: a product with one-hot vectors is a look-up."""
    first, last = network.layers
    assert isinstance(first, nn.Linear)
    n = first.weight.shape[1] // 2
    hidden = first.weight.T[pairs[:, 0]] + first.weight.T[n + pairs[:, 1]] + first.bias
    return last(network.activations[0](hidden))


@torch.no_grad()
def logit_table(network: MLP) -> Float[Tensor, "n n n"]:
    """The logit of c after (a, b), for all a, b, c."""
    n = network.config.widths[-1]
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    return pair_logits(network, pairs.to(network.device)).cpu().unflatten(0, (n, n))


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
    table = products(recipe)
    sides = [(pairs.to(device), table[pairs[:, 0], pairs[:, 1]].to(device)) for pairs in split(recipe)]

    def loss_of(side: int) -> Float[Tensor, ""]:
        pairs, answers = sides[side]
        return cross_entropy(pair_logits(network, pairs).double(), answers)

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        row = {"weight_norm": weight_norm(network)}
        for side, label in enumerate(("train", "test")):
            right = pair_logits(network, sides[side][0]).argmax(-1) == sides[side][1]
            row |= {f"{label}_loss": float(loss_of(side)), f"{label}_accuracy": float(right.double().mean())}
        return row

    losses = fit(
        network,
        lambda step: loss_of(0),
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=adamw(network, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay),
        snapshots=evenly(recipe.steps, recipe.checkpoints),
        measure=measure,
        measure_every=50,
        clip=None,
        progress=progress,
    )
    shares = character_shares(logit_table(network), group(recipe.group))
    shares = {irrep: round(share, 4) for irrep, share in shares.items()}
    store(network, out, recipe, losses, extra=measure(recipe.steps) | {"shares": shares})
    return losses


def truth(name: str, folder: Path) -> Truth:
    """`facts` are the table, as (a, b, a b) by number; the sampler draws held-out pairs."""
    recipe = RECIPES[name]
    table = products(recipe)
    train_pairs, test_pairs = split(recipe)

    def labelled(pairs: Int[Tensor, "pair 2"]) -> tuple[Tensor, Tensor]:
        return inputs(pairs, len(table)), table[pairs[:, 0], pairs[:, 1]]

    def sample(count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return labelled(test_pairs[torch.randint(len(test_pairs), (count,), generator=generator)])

    return Truth(
        name=name,
        facts=tuple((str(a), str(b), str(int(table[a, b]))) for a in range(len(table)) for b in range(len(table))),
        splits={"train": lambda: labelled(train_pairs), "test": lambda: labelled(test_pairs)},
        sampler=sample,
    )
