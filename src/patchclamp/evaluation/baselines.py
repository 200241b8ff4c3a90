"""What a dictionary must beat, as dictionaries themselves, so that every measure can be asked of them.

beside = baselines(dictionary, x)          # {"random": ..., "PCA": ..., "units": ...}
frozen_decoder(part, x, width=512)         # an encoder trained for random directions
identity(d), zero(d)                       # what recovers everything, and nothing, exactly
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries import Dictionary, Trainer
from patchclamp.dictionaries.measures import random_dictionary
from patchclamp.dictionaries.parts import Part

BASELINES = ("random", "PCA", "units")


def baselines(
    dictionary: Dictionary, x: Float[Tensor, "row d"], names: Sequence[str] = BASELINES, seed: int = 0
) -> dict[str, Dictionary]:
    """The baselines by name: "random" directions as many as the latents and with as many active; the principal
    components of `x`, as many of a row as latents are active ("PCA"); the activation's own "units", all of them.
    ValueError for another name.
    """
    unknown = sorted(set(names) - set(BASELINES))
    if unknown:
        raise ValueError(
            f"no baseline is called {unknown}: there are {', '.join(BASELINES)}; others are given as dictionaries"
        )
    make = {
        "random": lambda: random_dictionary(dictionary, seed),
        "PCA": lambda: pca(x, active=max(1, min(x.shape[1], round(float(dictionary.encode(x).l0().mean()))))),
        "units": lambda: identity(x.shape[1]).to(x.device),
    }
    return {name: make[name]() for name in names}


def identity(d: int) -> Dictionary:
    """The units of the activation as latents: explains x as x, to the bit."""
    eye = torch.eye(d)
    return Dictionary(eye, torch.zeros(d), eye, torch.zeros(d), select="absolute_topk", k=d)


def zero(d: int) -> Dictionary:
    """Explains every activation as zeros."""
    return Dictionary(torch.eye(d), torch.zeros(d), torch.zeros(d, d), torch.zeros(d), select="absolute_topk", k=d)


def pca(x: Float[Tensor, "row d"], active: int | None = None) -> Dictionary:
    """Principal components as signed latents, of which the `active` largest of each row are kept (None: all)."""
    mean = x.mean(0)
    rows = torch.linalg.svd((x - mean).double(), full_matrices=False)[2].to(x)
    none = rows.new_zeros(len(rows))
    return Dictionary(rows, none, rows, mean, b_in=mean, select="absolute_topk", k=active or len(rows))


def oracle(directions: Float[Tensor, "feature d"], threshold: float = 1e-3) -> Dictionary:
    """Known directions as a dictionary that reads along them and is active above a threshold.

    Exact for orthogonal directions; of others it says what a projection says.
    """
    none = directions.new_zeros(len(directions))
    return Dictionary(directions, none, directions, directions.new_zeros(directions.shape[1]), threshold=threshold)


def untrained(part: Part, x: Float[Tensor, "row d"], *, width: int, seed: int = 0) -> Dictionary:
    """A dictionary as training begins: directions half random and half a row of `x`, centred and scaled to it, no step
    taken.

    Parts whose threshold is learned get the one with which they would begin.
    """
    return _trained(part, x, width=width, seed=seed, steps=1, learning_rate=1e-30)


def frozen_decoder(
    part: Part,
    x: Float[Tensor, "row d"],
    *,
    width: int,
    steps: int = 300,
    batch: int = 1024,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Dictionary:
    """The baseline of sanity checks (arXiv:2602.14111): decoder directions stay random, the rest is trained."""
    return _trained(part, x, width=width, seed=seed, steps=steps, batch=batch, learning_rate=learning_rate, frozen=True)


def _trained(
    part: Part,
    x: Float[Tensor, "row d"],
    *,
    width: int,
    seed: int,
    steps: int,
    batch: int = 1024,
    learning_rate: float | None = None,
    frozen: bool = False,
) -> Dictionary:
    trainer = Trainer(part, d_in=x.shape[1], width=width, seed=seed, steps=steps, learning_rate=learning_rate)
    start = trainer.tensors["W_dec"].detach().clone()
    generator = torch.Generator().manual_seed((seed * 2654435761 + 0xBA5) % 2**63)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(batch, len(x)),), generator=generator)
        trainer.step(x[rows])
        if frozen:
            trainer.tensors["W_dec"].data.copy_(start)
    return trainer.dictionary()
