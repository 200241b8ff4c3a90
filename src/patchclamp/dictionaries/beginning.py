"""Where training begins: how fast to learn, directions that lean towards the data, a code that is sparse at once.

    learning_rate(width=12288, d=768, steps=1000)
    towards(directions, rows, generator)        # each direction, half of it a row of the data
    threshold_of(pre, active=128)               # above which so many latents of a row are active on average

What these are for was measured on planted activations (bench/recovery.py). A rate made for long runs leaves a short one
unfinished: a decoder row that turns by too little in all never comes to its feature. A penalty that has to silence half
of all latents before it can be weighed against the error shrinks every value to nothing; where the code begins sparse,
it only keeps it so.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

TURN = 40.0
"""By how many radians a decoder row can turn in a run, at least, if every step went one way."""
FASTEST = 0.1
"""Radians of a step, at most."""
DENSER = 4.0
"""So many times the wanted number of latents are active at first, under a penalty."""


def learning_rate(width: int, d: int, steps: int | None) -> float:
    """Of Adam, for decoder rows of norm 1 in `d` dimensions, whose every number moves by about this much in a step.

    2e-4 / sqrt(width / 2^14) (Gao et al. 2024), or as much more as a run of `steps` needs to be finished.
    """
    long = 2e-4 / math.sqrt(width / 2**14)
    return max(long, min(FASTEST, TURN / (steps or 10_000)) / math.sqrt(d))


def towards(
    directions: Float[Tensor, "width d"], rows: Float[Tensor, "row d"], which: Float[Tensor, " width"]
) -> Float[Tensor, "width d"]:
    """Each unit direction plus the unit direction of one of the rows. Rows that are short, and so say little, are not
    added: they are where nothing is active.
    """
    norms = rows.norm(dim=1, keepdim=True)
    said = torch.where(norms > norms.square().mean().sqrt() / 2, rows / norms.clamp_min(1e-12), 0.0)
    return directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12) + said[which]


def threshold_of(pre: Float[Tensor, "row width"], active: float) -> Float[Tensor, ""]:
    """The pre-activation above which `active` latents of a row are, on average."""
    kept = min(pre.numel(), max(1, round(active * len(pre))))
    return pre.flatten().topk(kept, sorted=False).values.min()
