"""Which frequencies a network that adds modulo p uses, and how much of its logits they explain.

    shares = cosine_shares(table)              # table[a, b, c]: the logit of c after a + b
    keys = key_frequencies(shares)             # e.g. (14, 35, 41, 42, 52) of 1 to 56
    shares[keys - 1].sum()                     # the variance that they explain

A network of the paper computes sum_k alpha_k cos(w_k (a + b - c)) with w_k = 2 pi k / p (Nanda et al. 2023,
arXiv:2301.05217). Both measures are taken of the logits less their mean over c, which no probability depends on.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

KEY_SHARE = 0.01  # of the variance: a frequency that explains less is no key frequency


def fourier_basis(p: int) -> Float[Tensor, "p p"]:
    """Orthonormal rows for functions on Z/p, p odd: constant, cos(w_1 x), sin(w_1 x), cos(w_2 x), ... (float64).

    >>> torch.allclose(fourier_basis(7) @ fourier_basis(7).T, torch.eye(7, dtype=torch.double))
    True
    """
    if p % 2 == 0:
        raise ValueError(f"this basis is of an odd p, in which every frequency has a cosine and a sine; p is {p}")
    angles = 2 * torch.pi / p * torch.outer(torch.arange(1, p // 2 + 1), torch.arange(p)).double()
    waves = torch.stack([angles.cos(), angles.sin()], 1).flatten(0, 1) * (2 / p) ** 0.5
    return torch.cat([torch.full((1, p), p**-0.5, dtype=torch.double), waves])


def frequency_norms(rows: Float[Tensor, "p d"]) -> Float[Tensor, "frequency"]:
    """The norm of what each frequency 1 to p // 2 has of a matrix with a row for each number, such as the embedding."""
    parts = fourier_basis(len(rows)) @ rows.double()
    return parts[1:].reshape(len(rows) // 2, -1).norm(dim=1)


def gini(values: Float[Tensor, "n"]) -> float:
    """Gini coefficient of values that are not negative: 0 where all are equal, 1 - 1/n where one has everything.

    >>> round(gini(torch.tensor([0.0, 0.0, 0.0, 5.0])), 4)
    0.75
    """
    ranked = values.double().sort().values
    ranks = torch.arange(1, len(ranked) + 1, dtype=torch.double)
    return float(2 * (ranks * ranked).sum() / (len(ranked) * ranked.sum()) - (len(ranked) + 1) / len(ranked))


def cosine_shares(table: Float[Tensor, "p p p"]) -> Float[Tensor, "frequency"]:
    """For each frequency 1 to p // 2, the share of the logits' variance along the one function cos(w_k (a + b - c)).

    `table[a, b, c]` is the logit of c. The cosines are orthogonal, so that shares of several frequencies add up.
    """
    p = len(table)
    centred = table.double() - table.double().mean(-1, keepdim=True)
    by_difference = torch.zeros(p, dtype=torch.double).index_add_(0, _difference(p).flatten(), centred.flatten())
    waves = (2 * torch.pi / p * torch.outer(torch.arange(1, p // 2 + 1), torch.arange(p)).double()).cos()
    return (waves @ by_difference) ** 2 / (p**3 / 2) / centred.square().sum()


def key_frequencies(shares: Float[Tensor, "frequency"], least: float = KEY_SHARE) -> Int[Tensor, "key"]:
    """The frequencies (from 1) whose share is at least `least`, the largest first."""
    order = shares.argsort(descending=True)
    return order[shares[order] >= least] + 1


def _difference(p: int) -> Int[Tensor, "p p p"]:
    number = torch.arange(p)
    return (number[:, None, None] + number[:, None] - number) % p
