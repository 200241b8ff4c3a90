"""Sparse coding proper: codes by FISTA, atoms fitted to them, in turn; no encoder learns anything.

    dictionary = sparse_coding(data, width=1024, l1=0.1)
    codes = pc.dictionaries.infer(dictionary, x, "fista", l1=0.1)

(Olshausen and Field 1996; the method of optimal directions is Engan et al. 1999, with statistics that forget, as in
Mairal et al. 2010.)
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.inference.proximal import fista
from patchclamp.dictionaries.inference.rows import batches, total
from patchclamp.dictionaries.inference.solution import Unsolved

UNUSED = 1e-3
"""An atom whose mean squared code is a smaller share of the mean atom's is not used."""


def sparse_coding(
    data: Any,
    width: int,
    *,
    l1: float,
    tokens: int | None = None,
    batch: int = 256,
    seed: int = 0,
    signed: bool = False,
    update: Literal["gradient", "optimal-directions"] = "gradient",
    rate: float = 0.8,
    centre: bool = False,
    steps: int = 30,
) -> Dictionary:
    """A dictionary of `width` atoms of norm 1 that explains rows with few codes, learned from `tokens` rows of `data`.

    Each batch gets codes from `steps` steps of FISTA at most, with the penalty `l1` in units of x. Then atoms move.
    "gradient": each along its own gradient, by `rate` of the way to its least-squares fit given the others, a share
    that falls to 0 along a cosine; what small batches add as noise is what leaves poor minima, so that it finds better
    ones than "optimal-directions": the joint least-squares fit to all batches, the older the less they count, which is
    sooner near one. Atoms that no row uses become the rows explained worst. `centre` subtracts the first batch's mean.

    The encoder of what comes out is one step of ISTA from zero, f = ReLU(x W_dec^T - l1); its real codes are `infer`'s.
    """
    if not l1 > 0 or width < 1 or not rate > 0:
        raise ValueError(f"l1={l1}, width={width}, rate={rate}: expected positive numbers")
    if update not in ("gradient", "optimal-directions"):
        raise ValueError(f"update={update!r}: expected 'gradient' or 'optimal-directions'")
    generator = torch.Generator().manual_seed((seed * 2654435761 + 0x5C) % 2**63)
    whole, seen = total(data, tokens), 0
    learner: _Atoms | None = None
    for rows in batches(data, batch, tokens, seed, "sparse coding"):
        if learner is None:
            learner = _Atoms(rows, width, centre, generator)
        x = rows - learner.offset
        with Unsolved.expected():
            z = fista(learner.atoms, x, l1, signed=signed, tolerance=1e-3, iterations=steps).codes.dense()
        if update == "gradient":
            learner.step(x, z, rate * (1 + math.cos(math.pi * seen / whole)) / 2)
        else:
            learner.fit(x, z)
        seen += len(rows)
        if seen < 0.8 * whole:
            learner.renew(x, z)
    assert learner is not None
    return Dictionary(
        learner.atoms,
        torch.full((width,), -l1),
        learner.atoms,
        learner.offset,
        b_in=learner.offset,
        metadata={"learned_by": "sparse coding", "l1": l1, "signed": signed, "tokens": seen, "seed": seed},
    )


class _Atoms:
    """The atoms while they are learned, and statistics of the codes that they got, of which a share is kept."""

    KEEP = 0.95

    def __init__(self, rows: Float[Tensor, "row d"], width: int, centre: bool, generator: torch.Generator) -> None:
        d = rows.shape[1]
        self.generator = generator
        self.offset = rows.mean(0) if centre else rows.new_zeros(d)
        # Random directions: rows are sums of true atoms, and such sums are minima that are hard to leave.
        self.atoms = torch.nn.functional.normalize(torch.randn(width, d, generator=generator), dim=1).to(rows)
        self.energy, self.weight, self.batches = rows.new_zeros(width), 0.0, 0
        self.squares: Tensor | None = None
        self.products: Tensor | None = None

    def step(self, x: Float[Tensor, "row d"], z: Float[Tensor, "row width"], rate: float) -> None:
        self._count(z)
        slope = z.T @ (x - z @ self.atoms) / len(x)
        curvature = (self.energy + 0.1 * self.energy.mean()) / self.weight
        moved = self.atoms + rate * slope / curvature.clamp_min(1e-12)[:, None]
        self.atoms = torch.nn.functional.normalize(moved, dim=1)

    def fit(self, x: Float[Tensor, "row d"], z: Float[Tensor, "row width"]) -> None:
        self._count(z)
        if self.squares is None or self.products is None:
            self.squares, self.products = torch.zeros_like(z.T @ z), torch.zeros_like(z.T @ x)
        self.squares.mul_(self.KEEP).addmm_(z.T, z)
        self.products.mul_(self.KEEP).addmm_(z.T, x)
        ridge = 1e-4 * self.squares.diagonal().mean() + 1e-12
        system = self.squares + ridge * torch.eye(len(self.squares)).to(self.squares)
        new = torch.linalg.solve(system, self.products + ridge * self.atoms)
        self.atoms = torch.nn.functional.normalize(new, dim=1)

    def renew(self, x: Float[Tensor, "row d"], z: Float[Tensor, "row width"]) -> None:
        """Every 20 batches, unused atoms become residuals of rows drawn by how badly they are explained."""
        residual = x - z @ self.atoms
        which = (self.energy < UNUSED * self.energy.mean()).nonzero()[:, 0]
        chances = (residual**2).sum(1).cpu()
        if self.batches % 20 or not len(which) or not chances.any():
            return
        rows = torch.multinomial(chances, len(which), replacement=True, generator=self.generator)
        self.atoms[which] = torch.nn.functional.normalize(residual[rows.to(residual.device)], dim=1)
        self.energy[which] = self.energy.mean()
        if self.squares is not None and self.products is not None:
            self.squares[which], self.squares[:, which], self.products[which] = 0, 0, 0

    def _count(self, z: Float[Tensor, "row width"]) -> None:
        self.energy.mul_(self.KEEP).add_((z**2).mean(0), alpha=1 - self.KEEP)
        self.weight = self.KEEP * self.weight + 1 - self.KEEP
        self.batches += 1
