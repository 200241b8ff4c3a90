"""Matching pursuit: signed sparse codes of rows over given atoms, without an encoder (Mallat and Zhang 1993).

    found = matching_pursuit(x, atoms, k=8)          # atoms [width, d] of norm 1
    found.codes                                      # Codes: which atoms, and how much of each, with its sign
    found.residual                                   # x less what the codes explain
    found.energy                                     # what each step took off the squared norm

Each step takes the atom with the largest inner product with what is left, so that exactly
|x|^2 = sum(energy) + |residual|^2, and the norm of what is left never grows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.dictionaries.codes import Codes

BLOCK = 2**24
"""Inner products of rows and atoms, or of atoms with each other, that are held at once."""


@dataclass(frozen=True)
class Pursuit:
    """What matching pursuit found of some rows: their codes, what is left of them, and the energy of each step."""

    codes: Codes
    residual: Float[Tensor, "row d"]
    energy: Float[Tensor, "row k"]


def matching_pursuit(x: Float[Tensor, "row d"], atoms: Float[Tensor, "width d"], k: int) -> Pursuit:
    """`k` steps of matching pursuit for each row. An atom that is taken again adds to its value, so that a row has at
    most k atoms.

    Rows are taken in blocks, so that memory stays bounded. Gradients flow to `x` and `atoms` through the values, not
    through the choice. ValueError where shapes do not fit, k is not between 1 and the number of atoms, or atoms are
    not of norm 1.
    """
    if x.ndim != 2 or atoms.ndim != 2 or x.shape[1] != atoms.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and atoms {tuple(atoms.shape)}: expected [row, d] and [width, d]")
    if not 1 <= k <= len(atoms):
        raise ValueError(f"k={k} steps over {len(atoms)} atoms: expected 1 to {len(atoms)}")
    norms = atoms.detach().norm(dim=1)
    if not bool(((norms - 1).abs() < 1e-2).all()):
        raise ValueError(f"atoms have norms of {float(norms.min()):.4g} to {float(norms.max()):.4g}: give unit vectors")
    differentiable = torch.is_grad_enabled() and (x.requires_grad or atoms.requires_grad)
    # Products between atoms spare those of size d in each step; where rows are short, reading them costs more.
    with_products = not differentiable and x.shape[1] >= 128 and len(atoms) <= min(k * len(x), int(BLOCK**0.5))
    products = atoms @ atoms.T if with_products else None
    found = [steps(block, atoms, k, products) for block in x.split(max(1, BLOCK // len(atoms)))]
    indices, values, residual = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Pursuit(merged(indices, values, len(atoms)), residual, values**2)


def steps(
    x: Float[Tensor, "row d"],
    atoms: Float[Tensor, "width d"],
    k: int,
    products: Float[Tensor, "width width"] | None = None,
) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"], Float[Tensor, "row d"]]:
    """The atom and the value of each step, and what is left after the last; `products` are those of atoms with atoms.

    Nothing is checked, and all inner products of rows with atoms are held at once: `matching_pursuit` does the rest.
    """
    residual, chosen, values = x, [], []
    inner = x @ atoms.T
    for step in range(k):
        if step and products is None:
            inner = residual @ atoms.T
        index = inner.abs().argmax(1)
        taken = atoms[index]
        # The row's own product, also where `inner` was kept up to date: its rounding must not enter the identity.
        value = (residual * taken).sum(1)
        if products is not None:
            inner = inner.addcmul(products[index], value[:, None], value=-1)
        residual = torch.addcmul(residual, value[:, None], taken, value=-1)
        chosen.append(index)
        values.append(value)
    return torch.stack(chosen, 1), torch.stack(values, 1), residual


def merged(indices: Int[Tensor, "row k"], values: Float[Tensor, "row k"], width: int) -> Codes:
    """Codes in which no latent comes twice in a row: the values of one that does are added up at its first place, and
    its other places get 0 on latents that the row does not name.

    >>> merged(torch.tensor([[2, 2, 1]]), torch.tensor([[1.0, 0.5, 3.0]]), width=4)
    Codes(indices=tensor([[2, 0, 1]]), values=tensor([[1.5000, 0.0000, 3.0000]]), width=4)
    """
    same = indices[:, :, None] == indices[:, None, :]
    first = same.int().argmax(2)  # of each place the first with the same latent
    again = first != torch.arange(indices.shape[1], device=indices.device)
    if not bool(again.any()):
        return Codes(indices, values, width)
    values = torch.zeros_like(values).scatter_add(1, first, values)
    repeats = again.any(1)
    named, place = indices[repeats], again[repeats]
    candidates = torch.arange(min(width, 2 * indices.shape[1]), device=indices.device)  # k of these are free, or enough
    free = (named[:, :, None] == candidates).any(1).int().argsort(dim=1, stable=True)
    spare = free.gather(1, (place.cumsum(1) - 1).clamp_min(0))
    indices = indices.clone()
    indices[repeats] = torch.where(place, spare, named)
    return Codes(indices, values, width)
