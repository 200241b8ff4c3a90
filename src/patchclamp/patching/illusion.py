"""Whether a direction whose patch moves the answer carries it, or only opens a dormant pathway.

    found = das(train, "mlp_post.1", pos=-1)
    print(illusion(test, found, pos=-1))          # effects of v, of its two parts, of the whole component, of random v

A direction v at a component that a map W reads can be the sum of two that mean nothing by themselves: one that goes
with the concept and that W sends to zero (v_null), and one that W reads and along which the activation never moves
(v_row). Patching v then pushes the second by as much as the first differs, and the answer follows, though the component
carries nothing (Makelov, Lange and Nanda 2024, arXiv:2311.17030). So a direction is believed when its part in the row
space of W does the same alone.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.interventions import Intervention, edit
from patchclamp.patching.pairs import Pairs
from patchclamp.patching.subspace import Subspace, features, readout, selected
from patchclamp.positions import Position
from patchclamp.sites import Site


@dataclass(frozen=True)
class Illusion:
    """What the test of one subspace found; effects are 0 for the base runs' measure and 1 for the source runs'.

    `whole` is the effect of the subspace, `row` and `null` those of its normalised parts in the row space and the null
    space of what reads the site (nan where there is no such part), `component` that of all of the activation. `random`
    are those of random subspaces of the same rank, `matched` those of random directions along which the patch is as
    large behind the readout. `row_share` and `null_share` are the parts' norms; `row_moves` and `null_moves` how far
    base and source runs differ along them, as a share of how far they differ at all: a dormant direction has next to
    none. `flipped` is the interchange accuracy of the subspace.
    """

    site: str
    whole: float
    row: float
    null: float
    component: float
    random: tuple[float, ...]
    matched: tuple[float, ...]
    row_share: float
    null_share: float
    row_moves: float
    null_moves: float
    flipped: float
    least: float = 0.1
    keeps: float = 0.5

    @property
    def kept(self) -> float:
        """The share of the effect that the part in the row space has alone: about 1 for a direction that is used."""
        return self.row / self.whole if self.whole else float("nan")

    @property
    def verdict(self) -> Literal["no effect", "illusory", "faithful"]:
        """ "no effect": below `least`, or a random subspace's. "illusory": the row part has less than `keeps` of it."""
        if abs(self.whole) < max(self.least, *(abs(effect) for effect in self.random)):
            return "no effect"
        return "faithful" if self.kept >= self.keeps else "illusory"

    def __str__(self) -> str:
        rows = [
            f"{self.site}: {self.verdict}",
            f"  effect of the subspace     {self.whole:+.3f}   (answers flipped: {self.flipped:.0%})",
            f"  of its row-space part      {self.row:+.3f}   norm {self.row_share:.2f}, moves {self.row_moves:.3f}",
            f"  of its null-space part     {self.null:+.3f}   norm {self.null_share:.2f}, moves {self.null_moves:.3f}",
            f"  of the whole activation    {self.component:+.3f}",
            f"  of {len(self.random)} random subspaces     {min(self.random):+.3f} to {max(self.random):+.3f}",
            f"  of as many pushes as large {min(self.matched):+.3f} to {max(self.matched):+.3f}",
        ]
        return "\n".join(rows)


def illusion(
    pairs: Pairs,
    subspace: Subspace,
    *,
    pos: Position = None,
    matrix: Float[Tensor, "feature out"] | None = None,
    random: int = 20,
    least: float = 0.1,
    keeps: float = 0.5,
    seed: int = 0,
) -> Illusion:
    """Test a subspace for a dormant pathway, on pairs that it was not found on.

    `matrix` is what reads the site next where the anatomy does not know (a `module:` site); in the residual stream,
    which goes on as it is, every direction is its own row part and only the other controls can speak.
    """
    if random < 1:
        raise ValueError("random=0 leaves nothing to compare the effect with; give at least 1")
    site = subspace.site
    reads = readout(pairs.model, site) if matrix is None else matrix
    row, null = subspace.split(reads)
    base, source = pairs.activations(site)
    change = (features(source, site) - features(base, site)).float()
    basis = subspace.basis.float()
    moved = change @ basis.T @ basis
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(basis.shape, generator=generator).to(change) for _ in range(random)]
    everything = Subspace(site, torch.eye(basis.shape[1], device=basis.device))

    def effect(part: Subspace | None) -> float:
        return float("nan") if part is None else pairs.effect([part.patch(source, pos)])

    return Illusion(
        site=str(site),
        whole=effect(subspace),
        row=effect(row),
        null=effect(null),
        component=effect(everything),
        random=tuple(effect(Subspace.spanned(site, v, pairs.model)) for v in draws),
        matched=tuple(pairs.effect([_as_large(v[0], change, moved, reads, site, pos)]) for v in draws),
        row_share=_share(subspace, row),
        null_share=_share(subspace, null),
        row_moves=_moves(pairs, change, row, pos),
        null_moves=_moves(pairs, change, null, pos),
        flipped=pairs.flipped([subspace.patch(source, pos)]),
        least=least,
        keeps=keeps,
    )


def _as_large(
    v: Tensor, change: Tensor, moved: Tensor, reads: Tensor | None, site: Site, pos: Position
) -> Intervention:
    """Along a random direction, at every token as far as the subspace's patch goes, measured behind the readout."""
    matrix = torch.eye(len(v), device=v.device) if reads is None else reads.float()
    sizes = (moved @ matrix).norm(dim=-1, keepdim=True) / (v @ matrix).norm()
    push = (change @ v).sign()[..., None] * sizes * v
    return edit(site, lambda x: x + push.reshape(x.shape).to(x.dtype), pos)


def _share(subspace: Subspace, part: Subspace | None) -> float:
    """The norm of the part of an average unit vector of the subspace that lies in `part`, before it was normalised."""
    if part is None:
        return 0.0
    return float((subspace.basis.double() @ part.basis.double().T).square().sum() / len(subspace.basis)) ** 0.5


def _moves(pairs: Pairs, change: Tensor, part: Subspace | None, pos: Position) -> float:
    if part is None:
        return 0.0
    tokens = selected(change, pairs, pos)
    return float((tokens @ part.basis.float().T).norm() / tokens.norm())
