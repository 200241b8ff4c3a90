"""Probes in closed form: ridge, difference of means, linear discriminant, nearest mean.

Ridge().fit(x, y).alpha_                   # the penalty that leave-one-out prefers, for each label
DifferenceOfMeans().fit(x, y).probe_       # weight is mean(yes) - mean(no), in the units of x
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.probes.estimator import Estimator

ALPHAS = tuple(10.0**e for e in range(-6, 5))
"""Penalties that leave-one-out chooses among, as multiples of the mean eigenvalue of the Gram matrix."""


@dataclass(eq=False)
class Ridge(Estimator):
    """Least squares on labels -1 and 1 with an L2 penalty; one factorisation for each site serves all its labels.

    Minimises sum_i s_i (t_i - w . x_i - b)^2 + alpha |w|^2, scikit-learn's `Ridge(alpha)`. Without `alpha` each label
    gets the one of eleven with the least squared error of leave-one-out, which is exact and costs no further fit.
    """

    alpha: float | None = None
    alpha_: Tensor = field(init=False, repr=False)

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return least_squares(x, 2 * y - 1, weights, self.alpha)

    def _learnt(self, *rest: Tensor) -> None:
        (self.alpha_,) = rest


def least_squares(
    x: Float[Tensor, "site row d"],
    y: Float[Tensor, "some row label"],
    weights: Float[Tensor, "some row label"],
    alpha: float | None,
) -> tuple[Float[Tensor, "site label d"], Float[Tensor, "site label"], Float[Tensor, "site label"]]:
    """Weight and bias that minimise sum_i s_i (y_i - w . x_i - b)² + alpha |w|², and alpha: where it is None, that of
    ALPHAS which leave-one-out prefers.
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha={alpha}: expected a positive number, or None for leave-one-out")
    labels = y.shape[-1]
    if labels > 1 and not bool((weights == weights[..., :1]).all()):  # rows weigh otherwise for each label
        parts = [least_squares(x, y[..., i : i + 1], weights[..., i : i + 1], alpha) for i in range(labels)]
        w, b, chosen = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        return w, b, chosen
    root = weights[..., :1].sqrt()
    total = (root**2).sum(1, keepdim=True)
    centre = (root**2).transpose(1, 2) @ x / total
    middle = ((root**2) * y).sum(1, keepdim=True) / total
    rows, t = x - centre, (root * (y - middle)).expand(len(x), -1, -1)
    rows = rows if bool((root == 1).all()) else rows * root
    primal = rows.shape[1] >= rows.shape[2]
    gram = rows.transpose(1, 2) @ rows if primal else rows @ rows.transpose(1, 2)
    if alpha is not None:
        factor, failed = torch.linalg.cholesky_ex(gram + alpha * torch.eye(gram.shape[1]).to(gram))
        size = factor.diagonal(dim1=1, dim2=2)
        if not bool(failed.any()) and bool((size.amin(1) > 1e-4 * size.amax(1)).all()):  # else rounding would show
            w = torch.cholesky_solve(rows.transpose(1, 2) @ t if primal else t, factor)
            w = (w if primal else rows.transpose(1, 2) @ w).transpose(1, 2)
            return w, middle[:, 0] - (w * centre).sum(-1), x.new_full((len(x), labels), alpha)
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    z = rows @ vectors if primal else vectors * values.sqrt()[:, None]  # rows in the eigenbasis
    along = z.transpose(1, 2) @ t
    if alpha is None:
        grid = values.mean(1)[:, None] * torch.tensor(ALPHAS, dtype=values.dtype, device=x.device)
        errors = torch.stack([_left_out(z, t, along, values + one[:, None], root) for one in grid.unbind(1)])
        chosen = grid.gather(1, errors.argmin(0))
    else:
        chosen = x.new_full((len(x), labels), alpha)
    kept = values > 1e-12 * values[:, -1:]  # beyond these rows have nothing but rounding
    inner = torch.where(kept[..., None], along / (values[..., None] + chosen[:, None]), 0.0)
    if primal:
        w = vectors @ inner
    else:
        w = rows.transpose(1, 2) @ (vectors @ (inner * torch.where(kept, values.rsqrt(), 0.0)[..., None]))
    w = w.transpose(1, 2)
    return w, middle[:, 0] - (w * centre).sum(-1), chosen


def _left_out(z: Tensor, t: Tensor, along: Tensor, shifted: Tensor, root: Tensor) -> Float[Tensor, "site label"]:
    """Mean squared error of each label on rows that were left out, from the diagonal of the hat matrix."""
    hat = (z**2 / shifted[:, None]).sum(-1, keepdim=True) + root**2 / (root**2).sum(1, keepdim=True)
    residual = t - z @ (along / shifted[..., None])
    return ((residual / (1 - hat).clamp_min(1e-9)) ** 2).sum(1)


@dataclass(eq=False)
class DifferenceOfMeans(Estimator):
    """The mean of yes minus the mean of no (Marks and Tegmark 2023, arXiv:2310.06824).

    The weight is the difference itself, so that adding it once moves one mean onto the other. The threshold is that of
    two normal distributions along it with one variance and the labels' own shares.
    """

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        yes, no, share = means(x, y, weights)
        w = yes - no
        along = x @ w.transpose(1, 2)
        at = torch.where(y > 0, (w * yes).sum(-1)[:, None], (w * no).sum(-1)[:, None])
        variance = (weights * (along - at) ** 2).sum(1) / weights.sum(1)
        gap = (w * w).sum(-1).clamp_min(1e-300)
        return w, variance / gap * torch.logit(share) - (w * (yes + no)).sum(-1) / 2


@dataclass(eq=False)
class NearestMean(Estimator):
    """Which of the two means is nearer: the difference of means with its threshold halfway, whatever the shares."""

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        yes, no, _ = means(x, y, weights)
        w = yes - no
        return w, -(w * (yes + no)).sum(-1) / 2


@dataclass(eq=False)
class LDA(Estimator):
    """Linear discriminant: the difference of means, whitened by the covariance within the two classes.

    The covariance is moved towards a multiple of the identity by the share `shrinkage`, as in scikit-learn's solver
    "lsqr". ValueError where it is singular: with fewer rows than dimensions some shrinkage is needed.
    """

    shrinkage: float = 0.1

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage={self.shrinkage}: expected a share between 0 and 1")
        yes, no, share = means(x, y, weights)
        alike = bool((weights == weights[..., :1]).all())  # rows weigh the same for every label
        found = []
        for label in range(y.shape[-1]):
            if label == 0 or not alike:
                total = weights[..., label].sum(1)[:, None, None]
                each = weights[..., label, None]
                rows = x - each.transpose(1, 2) @ x / total
                whole = (rows * each).transpose(1, 2) @ rows / total
                mean_square = whole.diagonal(dim1=1, dim2=2).mean(1)
            apart = (yes - no)[:, None, label]
            between = (share * (1 - share))[:, label, None, None] * apart  # within = whole - between' apart
            level = mean_square - (between * apart)[:, 0].mean(1)
            kept = 1 - self.shrinkage
            within = torch.baddbmm(whole, between.transpose(1, 2), apart, beta=kept, alpha=-kept)
            within.diagonal(dim1=1, dim2=2).add_(self.shrinkage * level[:, None])
            factor, failed = torch.linalg.cholesky_ex(within)
            smallest = factor.diagonal(dim1=1, dim2=2).amin(1)
            if bool(failed.any()) or bool((smallest < 1e-7 * level.sqrt()).any()):
                raise ValueError(
                    f"the covariance of {x.shape[1]} rows in {x.shape[2]} dimensions is singular: raise shrinkage="
                )
            found.append(torch.cholesky_solve(apart.transpose(1, 2), factor)[..., 0])
        w = torch.stack(found, 1)
        return w, torch.logit(share) - (w * (yes + no)).sum(-1) / 2


def means(
    x: Float[Tensor, "site row d"], y: Float[Tensor, "some row label"], weights: Float[Tensor, "some row label"]
) -> tuple[Float[Tensor, "site label d"], Float[Tensor, "site label d"], Float[Tensor, "some label"]]:
    """The mean of the rows that say yes, of those that say no, and the share of yes."""
    yes, no = weights * y, weights * (1 - y)
    mean_yes = (yes / yes.sum(1, keepdim=True)).transpose(1, 2) @ x
    mean_no = (no / no.sum(1, keepdim=True)).transpose(1, 2) @ x
    return mean_yes, mean_no, yes.sum(1) / weights.sum(1)
