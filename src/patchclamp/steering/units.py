"""Steering few units: those that a contrast moves the same way in nearly every pair, scaled by how often.

    found = pc.steering.units(model, positive, negative, sites="mlp_post.*")
    model.run(prompts, do=found.most(32).apply(strength=2.0))

The momentum of a unit is the share of pairs in which it is larger on the positive side, or, negative, smaller. A unit a
becomes a + strength * momentum * |a|, so that it moves the way its momentum says and is left alone where it is silent.
AUSteer ("Fine-Grained Activation Steering: Steering Less, Achieving More", arXiv:2602.04428) has a in place of |a|: the
same where units are never negative, but a unit below zero is pushed the wrong way (`published=True`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.interventions import Intervention, When, edit
from patchclamp.model import Model
from patchclamp.positions import Position
from patchclamp.steering.direction import DirectionError
from patchclamp.steering.means import Pattern, activations


@dataclass(frozen=True, eq=False)
class Units:
    """`momentum` [unit] by site, between -1 and 1; 0 is a unit that is not steered."""

    momentum: Mapping[str, Float[Tensor, "unit"]]

    @property
    def count(self) -> int:
        """How many units are steered, over all sites."""
        return sum(int((values != 0).sum()) for values in self.momentum.values())

    def most(self, k: int) -> "Units":
        """The `k` units with most momentum in either direction, over all sites; of equal ones the first."""
        flat = torch.cat(list(self.momentum.values()))
        if not 0 < k <= len(flat):
            raise DirectionError(f"k={k} of {len(flat)} units")
        return self._only(flat.abs().argsort(descending=True, stable=True)[:k])

    def drawn(self, k: int, *, seed: int = 0) -> "Units":
        """`k` units drawn at random, with their own momentum: the control of `most`."""
        total = sum(len(values) for values in self.momentum.values())
        return self._only(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:k])

    def apply(
        self, strength: float, *, published: bool = False, pos: Position = None, when: When = "all"
    ) -> list[Intervention]:
        """a + strength * momentum * |a| at every site that has a steered unit; with `published`, of a itself."""
        return [
            edit(site, _moved(strength * values, published), pos, when=when)
            for site, values in self.momentum.items()
            if bool(values.any())
        ]

    def _only(self, chosen: Tensor) -> "Units":
        flat = torch.cat(list(self.momentum.values()))
        keep = torch.zeros(len(flat), dtype=torch.bool)
        keep[chosen] = True
        parts = (flat * keep).split([len(values) for values in self.momentum.values()])
        return Units(dict(zip(self.momentum, parts, strict=True)))


def _moved(factors: Tensor, published: bool):
    def move(x: Tensor, **context) -> Tensor:
        # A site of units (z) has its units in more than one dimension.
        each = factors.to(x).reshape(x.shape[-1:] if x.shape[-1] == len(factors) else x.shape[2:])
        return x + each * (x if published else x.abs())

    return move


def momentum(positive: Float[Tensor, "pair unit"], negative: Float[Tensor, "pair unit"]) -> Float[Tensor, "unit"]:
    """The larger share of pairs that agree on the sign of the difference, with that sign; 0 where they are even.

    >>> momentum(torch.tensor([[2.0], [3.0], [0.0]]), torch.tensor([[1.0], [1.0], [1.0]]))
    tensor([0.6667])
    """
    if positive.shape != negative.shape:
        raise DirectionError(f"pairs need the same shape on both sides, not {positive.shape} and {negative.shape}")
    more, less = ((positive - negative).sign() == sign for sign in (1, -1))
    more, less = more.float().mean(0), less.float().mean(0)
    return (more - less).sign() * torch.maximum(more, less)


def units(
    model: Model, positive: Sequence[str], negative: Sequence[str], *, sites: Pattern = "mlp_post.*", pos: Position = -1
) -> Units:
    """The momentum of every unit at `sites`: prompt i of one side is paired with prompt i of the other."""
    if len(positive) != len(negative):
        raise DirectionError(f"pairs need as many prompts on both sides, not {len(positive)} and {len(negative)}")
    high, low = (activations(model, list(prompts), sites, pos=pos) for prompts in (positive, negative))
    return Units({str(site): momentum(high[site], low[site]) for site in high})
