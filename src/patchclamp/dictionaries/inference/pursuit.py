"""Greedy codes of at most k latents: orthogonal matching pursuit, and gradient pursuit.

    solution = omp(decoder, x, k=32)                # exact least squares on what was chosen, after every choice
    solution = gradient_pursuit(decoder, x, k=32)   # one gradient step on it instead

Each of k rounds chooses for every row the latent whose direction is most correlated with what is left of it. Beside
that product nothing of size [row, width] is made: what was chosen is [row, k].
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.inference.solution import Solution, checked, in_blocks

Update = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(gram, right, values, free) -> values, all of the chosen latents; those that are not free stay 0"""


def omp(
    decoder: Float[Tensor, "width d"],
    target: Float[Tensor, "row d"],
    k: int,
    *,
    signed: bool = False,
    tolerance: float = 1e-6,
) -> Solution:
    """Orthogonal matching pursuit (Pati et al. 1993); values are >= 0 unless `signed`, by non-negative least squares
    (Bruckstein et al. 2008).

    A row stops early when no latent correlates with what is left by more than `tolerance` of the row's norm.
    """
    return _greedy(decoder, target, k, signed, tolerance, least_squares if signed else nonnegative_least_squares)


def gradient_pursuit(
    decoder: Float[Tensor, "width d"],
    target: Float[Tensor, "row d"],
    k: int,
    *,
    signed: bool = False,
    tolerance: float = 1e-6,
) -> Solution:
    """Gradient pursuit (Blumensath and Davies 2008): after each choice one step of exact length along the gradient of
    all chosen values; arguments as for `omp`.
    """

    def update(gram: Tensor, right: Tensor, values: Tensor, free: Tensor) -> Tensor:
        return descend(gram, right, values, free, signed)

    return _greedy(decoder, target, k, signed, tolerance, update)


def _greedy(decoder: Tensor, target: Tensor, k: int, signed: bool, tolerance: float, update: Update) -> Solution:
    checked(decoder, target)
    if not 1 <= k <= len(decoder):
        raise ValueError(f"k={k} of {len(decoder)} latents")
    norms = decoder.norm(dim=1, keepdim=True)
    unit = torch.where(norms > 0, decoder / norms.clamp_min(1e-30), 0)

    def block(x: Tensor, rows: slice) -> Solution:
        return _block(decoder, unit, x, k, signed, tolerance, update)

    with torch.no_grad():
        return in_blocks(target, max(len(decoder), k * decoder.shape[1]), block)


def _block(
    decoder: Tensor, unit: Tensor, x: Tensor, k: int, signed: bool, tolerance: float, update: Update
) -> Solution:
    n, d = x.shape
    chosen = torch.zeros(n, k, dtype=torch.long, device=x.device)
    atoms, values = x.new_zeros(n, k, d), x.new_zeros(n, k)
    gram, right = torch.eye(k, dtype=x.dtype, device=x.device).repeat(n, 1, 1), x.new_zeros(n, k)
    live, free = torch.ones(n, dtype=torch.bool, device=x.device), torch.zeros_like(chosen, dtype=torch.bool)
    enough, residual, last = tolerance * x.norm(dim=1), x, k
    for t in range(k):
        scores = residual @ unit.T
        scores = scores.abs_() if signed else scores
        best, index = scores.scatter_(1, chosen[:, :t], -torch.inf).max(1)
        live &= best > enough
        if not live.any():
            last = max(t, 1)
            break
        chosen[:, t], free[:, t] = index, live
        atom = decoder[index] * live[:, None]
        atoms[:, t] = atom
        products = torch.bmm(atoms[:, : t + 1], atom[:, :, None])[..., 0]
        gram[:, t, : t + 1] = gram[:, : t + 1, t] = products
        gram[:, t, t] += (~live).to(x)
        right[:, t] = (atom * x).sum(1)
        upto = slice(0, t + 1)
        values[:, upto] = update(gram[:, upto, upto], right[:, upto], values[:, upto], free[:, upto])
        residual = x - torch.bmm(values[:, None, upto], atoms[:, upto])[:, 0]
    return Solution(Codes(chosen[:, :last], values[:, :last], len(decoder)), free.sum(1))


def least_squares(
    gram: Float[Tensor, "row k k"],
    right: Float[Tensor, "row k"],
    values: Float[Tensor, "row k"],
    free: Bool[Tensor, "row k"],
) -> Float[Tensor, "row k"]:
    """The values of the `free` latents that explain a row best, by Cholesky; the others are 0.

    A ridge of rounding size keeps latents that depend on each other from breaking it; where it breaks all the same,
    `values` stay.
    """
    both = free[:, :, None] & free[:, None, :]
    system = torch.where(both, gram, 0)
    diagonal = torch.diagonal(gram, dim1=1, dim2=2) * (1 + 16 * torch.finfo(gram.dtype).eps)
    system.diagonal(dim1=1, dim2=2).copy_(torch.where(free, diagonal, 1))
    factor, failed = torch.linalg.cholesky_ex(system)
    solved = torch.cholesky_solve(torch.where(free, right, 0)[..., None], factor)[..., 0]
    return torch.where((failed == 0)[:, None], solved, values)


def nonnegative_least_squares(
    gram: Float[Tensor, "row k k"],
    right: Float[Tensor, "row k"],
    values: Float[Tensor, "row k"],
    free: Bool[Tensor, "row k"],
) -> Float[Tensor, "row k"]:
    """The values >= 0 that explain a row best: Lawson and Hanson's active sets, all rows at once.

    It begins from all `free` latents but those that were 0 in `values` before, the newest excepted.
    """
    result = torch.zeros_like(values)
    positive = free & (values > 0)
    positive[:, -1] = free[:, -1]
    todo = torch.arange(len(values), device=values.device)
    allowed, z = free, values
    small = 8 * torch.finfo(gram.dtype).eps * right.abs().amax(1, keepdim=True)
    for _ in range(3 * values.shape[1] + 3):
        solved = least_squares(gram, right, z, positive)
        negative = positive & (solved <= 0)
        reach = torch.where(negative, z / (z - solved).clamp_min(1e-30), 1)
        share = reach.amin(1, keepdim=True)
        z = torch.where(positive, z + share * (solved - z), 0).clamp_min(0)
        leaving = negative & (reach == share)
        positive, z = positive & ~leaving, torch.where(leaving, 0, z)
        slope = right - torch.bmm(gram, z[..., None])[..., 0]
        slope = torch.where(allowed & ~positive & ~leaving, slope, -torch.inf)
        entering = (slope > small) & (slope == slope.amax(1, keepdim=True)) & ~negative.any(1, keepdim=True)
        positive = positive | entering
        going = negative.any(1) | entering.any(1)
        result[todo] = z
        if not going.any():
            break
        todo, gram, right, small, z = todo[going], gram[going], right[going], small[going], z[going]
        positive, allowed = positive[going], allowed[going]
    return result


def descend(
    gram: Float[Tensor, "row k k"],
    right: Float[Tensor, "row k"],
    values: Float[Tensor, "row k"],
    free: Bool[Tensor, "row k"],
    signed: bool,
) -> Float[Tensor, "row k"]:
    """One gradient step of the length that explains most; unless `signed`, values stop at 0 and do not leave it
    downwards.
    """
    slope = torch.where(free, right - torch.bmm(gram, values[..., None])[..., 0], 0)
    if not signed:
        slope = torch.where((values <= 0) & (slope < 0), 0, slope)
    bent = (slope * torch.bmm(gram, slope[..., None])[..., 0]).sum(1, keepdim=True)
    length = (slope**2).sum(1, keepdim=True) / bent.clamp_min(1e-30)
    moved = values + torch.where(bent > 0, length, 0) * slope
    return moved if signed else moved.clamp_min(0)
