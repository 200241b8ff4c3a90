"""Rows to fit on when labels are few, uneven, wrong, or drawn otherwise than where the probe will be used.

    rows = scarce(y, 16, share=0.5, seed=0)        # 8 of each value; share=0.1: imbalanced
    noisy = flipped(y[rows], 0.2, seed=0)          # a fifth of the labels wrong
    train, test = shifted(y, nuisance, 200, seed=0)    # train where they go together, test where they go apart

Kantamneni et al. 2025 (arXiv:2502.16681), section 3.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def scarce(y: Float[Tensor, " row"], n: int, *, share: float = 0.5, seed: int = 0) -> Int[Tensor, " n"]:
    """`n` rows of which a `share` (rounded, at least one, at most all but one) are yes; those of yes come first.

    ValueError where there are not so many of a value.
    """
    if n < 2:
        raise ValueError(f"n={n}: a probe needs a row of each value")
    yes = min(n - 1, max(1, round(share * n)))
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for value, count in ((1, yes), (0, n - yes)):
        rows = (torch.as_tensor(y) == value).nonzero()[:, 0]
        if len(rows) < count:
            raise ValueError(f"{count} rows of label {value} were asked for, and there are {len(rows)}")
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(chosen)


def flipped(y: Float[Tensor, "*row"], share: float, *, seed: int = 0) -> Float[Tensor, "*row"]:
    """The labels with each of them turned over with probability `share`."""
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: expected a share between 0 and 1")
    turn = torch.rand(y.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(turn.to(y.device), 1 - y, y)


def shifted(
    y: Float[Tensor, " row"], nuisance: Float[Tensor, " row"], n: int, *, seed: int = 0
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """`n` rows in which label and nuisance are the same, and `n` in which they differ, each with half of either label.

    What has learnt the nuisance is right on the first and wrong on the second.
    """
    same = torch.as_tensor(y) == torch.as_tensor(nuisance)
    found = []
    for part, inside in enumerate((same, ~same)):
        rows = inside.nonzero()[:, 0]
        found.append(rows[scarce(y[rows], n, seed=2 * seed + part)])
    return found[0], found[1]
