"""Patching a part of an activation: its component in the subspace that a few directions span, and how to find them.

    found = das(pairs, "resid_post.1", pos=-1)                  # or mean_direction, gradient_direction
    pairs.effect([found.patch(pairs.activations("resid_post.1")[1], pos=-1)])

The patched activation is h + V^T V (h_source - h), with orthonormal rows V. Distributed alignment search finds V by
gradient (Geiger et al. 2024, arXiv:2303.02536). A direction so found can work without being used: see `illusion`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.interventions import Intervention, InterventionError, edit
from patchclamp.model import Model
from patchclamp.patching.pairs import Pairs
from patchclamp.positions import Frame, Position
from patchclamp.sites import Site, SiteError
from patchclamp.views import track

_STREAM = frozenset({"embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out"})


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions at a site: `basis` [k, feature] with orthonormal rows. Heads of a whole `z` are laid end to end."""

    site: Site
    basis: Float[Tensor, "k feature"]

    @classmethod
    def spanned(cls, site: "str | Site", directions: Float[Tensor, "... feature"], model: Model) -> "Subspace":
        """What one direction, or several that need not be orthogonal, span. ValueError where that is nothing."""
        where = _one(model, site)
        basis = _orthonormal(torch.atleast_2d(directions))
        if len(basis) == 0:
            raise ValueError(f"directions of zeros at {where} span no subspace")
        return cls(where, basis.to(directions.dtype))

    def patch(self, source: Any, pos: Position = None) -> Intervention:
        """Put in the source's component in this subspace: `source` is a run, or a tensor of the site's shape."""
        theirs = source if isinstance(source, Tensor) else source[self.site]
        basis = self.basis

        def patched(x: Tensor, start: int, frame: Frame) -> Tensor:
            own, other = features(x, self.site), features(_aligned(theirs, x, start, frame, self.site), self.site)
            exact = torch.promote_types(x.dtype, torch.float32)
            v = basis.to(device=x.device, dtype=exact)
            if own.shape[-1] != v.shape[-1]:
                raise InterventionError(f"directions of {v.shape[-1]} features at {self.site}, {own.shape[-1]} wide")
            change = (other.to(exact) - own.to(exact)) @ v.T @ v
            return (own.to(exact) + change).to(x.dtype).reshape(x.shape)

        return edit(self.site, patched, pos)

    def split(self, readout: Float[Tensor, "feature out"] | None) -> "tuple[Subspace | None, Subspace | None]":
        """Its parts in the row space and in the null space of what reads the site next, each normalised.

        None for a part that is nothing; a `readout` of None (the stream goes on as it is) has no null space.
        """
        if readout is None:
            return self, None
        if readout.shape[0] != self.basis.shape[1]:
            raise ValueError(f"a readout of {list(readout.shape)} for {self.basis.shape[1]} features at {self.site}")
        basis = self.basis.double()
        seen = _row_space(readout)
        row = basis @ seen @ seen.T
        parts = (_orthonormal(part, 1.0).to(self.basis.dtype) for part in (row, basis - row))
        row_part, null_part = (Subspace(self.site, part) if len(part) else None for part in parts)
        return row_part, null_part


def readout(model: Model, site: "str | Site") -> Float[Tensor, "feature out"] | None:
    """The matrix that reads a site next; None where the activation goes on as it is, in the residual stream.

    SiteError for sites that are read otherwise than by one matrix, such as queries and patterns.
    """
    where, weights = _one(model, site), model.weights
    layer, unit = where.layer or 0, where.unit
    match where.kind:
        case kind if kind in _STREAM:
            return None
        case "mlp_post" if unit is None:
            return weights.W_out[layer].detach()
        case "z":
            matrix = weights.W_O[layer].detach()
            return matrix.flatten(0, 1) if unit is None else matrix[unit]
        case "attn_in":
            parts = (matrix[layer].detach() for matrix in (weights.W_Q, weights.W_K, weights.W_V))
            return torch.cat([part.movedim(0, 1).flatten(1) for part in parts], 1)
        case "mlp_in":
            gated = Site("mlp_gate", layer) in model.anatomy.taps
            return torch.cat([w[layer].detach() for w in (weights.W_in, *([weights.W_gate] if gated else []))], 1)
        case "final_norm":
            return weights.W_U.detach()
    raise SiteError(
        f"{where} is not read by one matrix; give readout= [feature, out], or patch mlp_post, z or the stream"
    )


def mean_direction(pairs: Pairs, site: "str | Site", *, pos: Position = None, labels: Tensor | None = None) -> Subspace:
    """Difference of means, source less base, at the positions `pos`.

    `labels` [prompt] of +1 and -1 say which way each pair points, where not all point the same way.
    """
    where = _one(pairs.model, site)
    base, source = (features(x, where) for x in pairs.activations(where))
    change = (source - base).float()
    if labels is not None:
        change = change * labels.to(change).reshape(-1, *([1] * (change.ndim - 1)))
    return Subspace.spanned(where, selected(change, pairs, pos).mean(0), pairs.model)


def gradient_direction(pairs: Pairs, site: "str | Site", *, pos: Position = None) -> Subspace:
    """The gradient of the measure at the site in the base runs, averaged over prompts and positions `pos`."""
    where = _one(pairs.model, site)
    run = pairs.model.run(pairs.base, record=where, grad=pairs.measure, attention_mask=pairs.mask)
    assert run.grad is not None
    return Subspace.spanned(where, selected(features(run.grad[where], where).float(), pairs, pos).mean(0), pairs.model)


def random_direction(pairs: Pairs, site: "str | Site", *, rank: int = 1, seed: int = 0) -> Subspace:
    """A random subspace: the control of those that were searched for."""
    where = _one(pairs.model, site)
    width = features(pairs.activations(where)[0], where).shape[-1]
    generator = torch.Generator().manual_seed(seed)
    return Subspace.spanned(where, torch.randn(rank, width, generator=generator).to(pairs.model.device), pairs.model)


def das(
    pairs: Pairs,
    site: "str | Site",
    *,
    pos: Position = None,
    rank: int = 1,
    steps: int = 100,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Subspace:
    """Distributed alignment search: the subspace whose patch brings the measure nearest to the source runs'.

    Adam on a matrix of which the basis is the Q of its QR decomposition; the loss is the mean squared distance to the
    source runs' measure, as a share of the base runs'. Evaluate on pairs that were not searched on.
    """
    start = random_direction(pairs, site, rank=rank, seed=seed)
    source, where = pairs.activations(start.site)[1], start.site
    raw = start.basis.clone().float().requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=learning_rate)
    target = pairs.source_values.detach()
    distance = (pairs.base_values - target).square().mean()
    if not float(distance) > 0:
        raise ValueError("base and source runs measure the same: there is nothing to search for")
    for _ in track(range(steps), f"alignment search at {where}"):
        basis = torch.linalg.qr(raw.T)[0].T
        with torch.enable_grad(), pairs.model.under(do=[Subspace(where, basis).patch(source, pos)]):
            loss = (pairs.forward() - target).square().mean() / distance
            raw.grad = torch.autograd.grad(loss, raw)[0]
        optimiser.step()
    return Subspace(where, torch.linalg.qr(raw.detach().T)[0].T.contiguous())


def rank_one_edit(
    readout: Float[Tensor, "feature out"],
    base: Float[Tensor, "feature"],
    source: Float[Tensor, "feature"],
    subspace: Subspace,
    *,
    covariance: Float[Tensor, "feature feature"] | None = None,
) -> Float[Tensor, "feature out"]:
    """The change of a matrix that does to one input what patching the subspace does: base @ (W + edit) = patched @ W.

    edit = k (V^T V (source - base)) W with k = C^-1 base / (base C^-1 base): the form of ROME (Meng et al. 2022,
    arXiv:2202.05262), where `covariance` C keeps other inputs as they are; k = base / |base|^2 without.
    """
    base, source = base.double(), source.double()
    key = base if covariance is None else torch.linalg.solve(covariance.double(), base)
    size = float(key @ base)
    if size == 0:
        raise ValueError("an input of zeros is the same under any change of the matrix")
    v = subspace.basis.double()
    change = (source - base) @ v.T @ v @ readout.double()
    return torch.outer(key / size, change).to(readout.dtype)


# ── what they share ───────────────────────────────────────────────────────────────────────────────────────────────────


def features(x: Tensor, site: Site) -> Tensor:
    """A site's tensor with its features as the last dimension: [prompt, pos, feature], or [prompt, feature]."""
    if site.kind.endswith(("scores", "pattern")) or (site.kind == "module" and x.ndim > 3):
        raise SiteError(f"{site} {list(x.shape)} has no dimension of features, in which a subspace could lie")
    return x.flatten(2) if x.ndim > 3 else x


def selected(x: Tensor, pairs: Pairs, pos: Position) -> Float[Tensor, "token feature"]:
    """The rows of [prompt, pos, feature] at the positions `pos`; of [prompt, feature], all."""
    if x.ndim == 2:
        return x
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if pairs.mask is None else pairs.mask
    frame = Frame.of_mask(mask)
    columns = frame.columns(pos)
    columns = frame.everything if columns is None else columns
    rows, slots = (columns >= 0).nonzero(as_tuple=True)
    return x[rows.to(x.device), columns[rows, slots].to(x.device)]


def _one(model: Model, site: "str | Site") -> Site:
    found = model.sites(site)
    if len(found) != 1:
        raise SiteError(f"{site} names {len(found)} sites; a subspace is one site's")
    return found[0]


def _aligned(theirs: Tensor, x: Tensor, start: int, frame: Frame, site: Site) -> Tensor:
    moved = frame.given is not None and not torch.equal(frame.given, frame.left)
    if x.ndim > 2 and theirs.shape[0] == len(x) and not moved:
        theirs = theirs[:, start : start + x.shape[1]]
    if theirs.shape != x.shape or moved:
        raise InterventionError(
            f"the source of a subspace patch has {site} {list(theirs.shape)}, and here it is {list(x.shape)}"
            + (" behind padding that was moved" if moved else "")
            + ": give prompts of the same layout, and pos= within them"
        )
    return theirs.to(x.device)


def _row_space(readout: Tensor) -> Float[Tensor, "feature rank"]:
    """An orthonormal basis, in columns, of the inputs that a matrix [feature, out] does not send to zero."""
    left, sizes, _ = torch.linalg.svd(readout.double(), full_matrices=False)
    precision = torch.finfo(readout.dtype if readout.is_floating_point() else torch.float32).eps
    return left[:, sizes > sizes.max() * max(readout.shape) * precision]


def _orthonormal(rows: Tensor, scale: float | None = None) -> Float[Tensor, "k feature"]:
    """An orthonormal basis of what the rows span, in float64; a millionth of `scale` (the largest row) is nothing.

    A single row keeps its sign.
    """
    exact = rows.detach().double()
    least = 1e-6 * (float(exact.norm(dim=1).max()) if scale is None else scale)
    if len(exact) == 1:
        size = float(exact.norm())
        return exact / size if size > least else exact[:0]
    _, sizes, basis = torch.linalg.svd(exact, full_matrices=False)
    return basis[sizes > least]
