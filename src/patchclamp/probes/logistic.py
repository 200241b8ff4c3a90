"""Logistic regression of many labels at many sites at once, at scikit-learn's optimum.

    Logistic(C=0.1).fit(x, y)                  # minimises 1/2 |w|^2 + C sum_i s_i log(1 + exp(-t_i (w . x_i + b)))

Limited-memory BFGS on all problems together, in single precision. What makes it quick: labels at one site share its
activations, so that margins and gradients are matrix products; two preconditioners, between which each label has its
own, do for a site; a line search needs only margins; what is done leaves; the last few get Hessians of their own.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vecdot
from torch.nn.functional import softplus

from patchclamp.probes.estimator import Estimator

MEMORY = 6
ROUGH = 1e-7
"""The finest tolerance that single precision reaches."""
CURVATURES = (0.002, 0.2)
"""Means of p (1 - p) over rows between which the preconditioner knows a label's Hessian."""
MEASURED = (2, 4)
"""After how many steps a label's mean of p (1 - p) is taken anew."""
SLOPES = ((0.4, 0.2), (0.6, 0.4), *6 * [(0.9, 0.9)])
"""How much of the slope may be left, downwards and upwards, after each trial of a line search."""
LEFT = 0.85
"""Share of the problems still going, below which the others are dropped."""
OWN = 6
"""How many times the work of the Hessians of all that are left must have been done before they are computed."""
SMALL, MANY = 2**15, 8
"""Sites of fewer numbers are not worth a matrix product of their own, where they are more than so many."""
PAYS = 60
"""Passes over the rows that a whole preconditioner saves a label, about."""


@dataclass(eq=False)
class Logistic(Estimator):
    """Logistic regression with an L2 penalty; C, as in scikit-learn, is the inverse of its strength.

    `balanced` weighs rows so that both values of a label count alike. `standardise` divides each dimension by its
    standard deviation before the penalty is applied; weight and bias are those for x as it was given. `tolerance` is
    the share of the objective by which it may miss its optimum, as the last step estimates it. RuntimeError where
    `iterations` did not suffice.
    """

    C: float = 1.0
    balanced: bool = False
    standardise: bool = False
    tolerance: float = 1e-6
    iterations: int = 1000
    doubled: ClassVar[bool] = False

    def predict_proba(self, x: object) -> Float[Tensor, "*row_and_label"]:
        """Probability of yes."""
        return self.decision_function(x).sigmoid()

    def _solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if not self.C > 0:
            raise ValueError(f"C={self.C}: expected a positive number")
        if self.balanced:
            weights = balance(y, weights)
        scale = None
        if self.standardise:
            scale = deviation(x, weights.mean(-1, keepdim=True))
            x = x / scale.to(x.dtype)
        w, b = solve(x, y, self.C * weights, tolerance=self.tolerance, iterations=self.iterations)
        return (w if scale is None else w / scale), b


def balance(y: Float[Tensor, "some row label"], weights: Float[Tensor, "some row label"]) -> Tensor:
    """Weights that make both values of each label weigh half of what all rows do."""
    total, yes = weights.sum(-2, keepdim=True), (weights * y).sum(-2, keepdim=True)
    return weights * torch.where(y > 0, total / (2 * yes), total / (2 * (total - yes)))


def deviation(x: Float[Tensor, "site row d"], weights: Float[Tensor, "some row 1"]) -> Float[Tensor, "site 1 d"]:
    """Standard deviation of each dimension over the rows; 1 where a dimension is constant."""
    total = weights.sum(-2, keepdim=True)
    mean = (weights * x).sum(-2, keepdim=True) / total
    spread = ((weights * (x - mean) ** 2).sum(-2, keepdim=True) / total).sqrt()
    return torch.where(spread > 1e-9 * (mean.abs() + 1e-12), spread, 1.0)


def objective(
    x: Float[Tensor, "site row d"], y: Tensor, weights: Tensor, w: Float[Tensor, "site label d"], b: Tensor
) -> Float[Tensor, "site label"]:
    """What is minimised, for each label of each site; `weights` hold C."""
    margin = x @ w.transpose(1, 2) + b[:, None]
    return (weights * torch.nn.functional.softplus(margin * (1 - 2 * y))).sum(1) + 0.5 * (w**2).sum(-1)


def solve(
    x: Float[Tensor, "site row d"],
    y: Float[Tensor, "some row label"],
    weights: Float[Tensor, "some row label"],
    *,
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> tuple[Float[Tensor, "site label d"], Float[Tensor, "site label"]]:
    """The minimum of `objective`: found in single precision, and polished in double where rounding could show.

    RuntimeError where it was not reached.
    """
    sites, rows, d = x.shape
    y, weights = (t.transpose(1, 2).expand(sites, -1, rows) for t in (y, weights))
    labels, shared = y.shape[1], weights.mean(1, keepdim=True)
    centre = (shared / shared.sum(-1, keepdim=True)).to(x.dtype) @ x
    start = y.new_zeros(sites, labels, d + 1)  # the last of the unknowns is the bias
    start[..., -1] = torch.logit((weights * y).sum(-1) / weights.sum(-1))
    now, y, weights = (t.flatten(0, 1) for t in (start, y, weights))
    for dtype, limit in ((torch.float32, min(iterations, 100)), (torch.float64, iterations)):
        rough = dtype == torch.float32
        lifted = x.new_ones(sites, rows, d + 1, dtype=dtype)
        torch.sub(x if rough else x.double(), centre, out=lifted[..., :-1])
        if rough:
            inverse = _inverses(lifted, shared.float(), labels)
        heavy = weights.to(dtype)
        problems = _Problems(lifted, inverse.to(dtype), [labels] * sites, heavy, -heavy * y.to(dtype))
        now, reached = _minimise(problems, now.to(dtype), max(tolerance, ROUGH * rough), limit)
        # No margin is rounded by more than this, and the value by no more than its square.
        rounding = torch.finfo(dtype).eps * float(now.norm(dim=-1).amax() * lifted.norm(dim=-1).amax())
        if rough and reached and tolerance >= ROUGH and rounding**2 <= tolerance:
            break
    if not reached:
        raise RuntimeError(f"no convergence in {iterations} iterations: standardise x, or lower C")
    w, b = now.double().unflatten(0, (sites, labels)).split([d, 1], -1)
    return w, b[..., 0] - (w * centre).sum(-1)


def _inverses(x: Tensor, shared: Tensor, labels: int) -> Tensor:
    """Of the Hessian where p (1 - p) is one of CURVATURES in all rows, side by side: whole [site, d, 2d] where that
    pays, else of its diagonal, for each problem [site * label, 2d].

    A label's own is interpolated between the two: it is right for directions of little and of much variance.
    """
    _, rows, d = x.shape
    whole = d * (2 + 1.7 * d / rows) < PAYS * labels
    gram = (x * shared.transpose(1, 2)).transpose(1, 2) @ x if whole else shared @ x**2
    found = []
    for curvature in CURVATURES:
        hessian = curvature * gram
        if whole:
            hessian.diagonal(dim1=1, dim2=2)[:, :-1].add_(1)
            found.append(torch.cholesky_inverse(torch.linalg.cholesky(hessian)))
        else:
            hessian[..., :-1] += 1
            found.append((1 / hessian)[:, 0].repeat_interleave(labels, 0))
    return torch.cat(found, -1)


@dataclass
class _Problems:
    """Labels of all sites, one after the other; `counts` says how many of each. x [row, unknown] and `inverse` are
    stacked while every site has as many labels, and lists after that. `target` is -weights * y.
    """

    x: Tensor | list[Tensor]
    inverse: Tensor | list[Tensor]
    counts: list[int]
    weights: Float[Tensor, "problem row"]
    target: Float[Tensor, "problem row"]

    def margins(self, now: Tensor) -> Tensor:
        x = self.x
        return self._times(now, x.transpose(1, 2) if isinstance(x, Tensor) else [one.T for one in x])

    def residual(self, z: Tensor) -> Tensor:
        return torch.addcmul(self.target, self.weights, z.sigmoid())

    def gradient(self, residual: Tensor, now: Tensor) -> Tensor:
        out = self._times(residual, self.x)
        out[:, :-1] += now[:, :-1]
        return out

    def value(self, z: Tensor, now: Tensor, some: Tensor) -> Tensor:
        z = z[some]
        loss = vecdot(softplus(z), self.weights[some]) + vecdot(z, self.target[some])
        return loss + 0.5 * (now[some, :-1] ** 2).sum(-1)

    def curvature(self, z: Tensor) -> Tensor:
        p = z.sigmoid()
        return torch.addcmul(p, p, p, value=-1).mul_(self.weights)

    def share(self, z: Tensor) -> Tensor:
        """How much of the first inverse is in a label's own, by its mean of p (1 - p)."""
        low, high = CURVATURES
        mean = (self.curvature(z).sum(-1) / self.weights.sum(-1)).clamp(low, high)
        return ((1 / mean - 1 / high) / (1 / low - 1 / high))[:, None]

    def precondition(self, q: Tensor, share: Tensor) -> Tensor:
        diagonal = self.inverse if isinstance(self.inverse, Tensor) and self.inverse.ndim == 2 else None
        both = self._times(q, self.inverse) if diagonal is None else q.repeat(1, 2) * diagonal
        low, high = both[:, : q.shape[1]], both[:, q.shape[1] :]
        return torch.lerp(high, low, share) if high.shape[1] else low

    def _times(self, rows: Tensor, matrices: Tensor | list[Tensor]) -> Tensor:
        if isinstance(matrices, Tensor):
            return (rows.unflatten(0, (len(matrices), -1)) @ matrices).flatten(0, 1)
        out = rows.new_empty(len(rows), matrices[0].shape[1])
        for some, matrix, into in zip(rows.split(self.counts), matrices, out.split(self.counts), strict=True):
            torch.mm(some, matrix, out=into)
        return out

    @property
    def stays(self) -> bool:
        """Whether sites are too small and too many, or on a device too quick, to be taken apart."""
        return self.x[0].is_cuda or (self.x[0].numel() < SMALL and len(self.counts) > MANY)

    def whole(self, going: Tensor) -> Tensor:
        """Those that go on: all labels of a site in which one does, where sites stay together."""
        if not self.stays:
            return going
        site = going.unflatten(0, (len(self.counts), -1))
        return site.any(1, keepdim=True).expand_as(site).flatten()

    def part(self, going: Tensor, chosen: Tensor) -> "_Problems":
        """Those that are chosen, which `going` says too."""
        counts = [int(some.sum()) for some in going.split(self.counts)]
        sites = [site for site, count in enumerate(counts) if count]
        x = [self.x[site] for site in sites]
        diagonal = isinstance(self.inverse, Tensor) and self.inverse.ndim == 2
        inverse = self.inverse[chosen] if diagonal else [self.inverse[site] for site in sites]
        if self.stays:
            x, inverse = torch.stack(x), inverse if isinstance(inverse, Tensor) else torch.stack(inverse)
        return _Problems(x, inverse, [counts[site] for site in sites], self.weights[chosen], self.target[chosen])

    def own(self, z: Tensor) -> "_Problems":
        """With each label's own Hessian where it is, as in Newton's method; as it was where rounding rules that out."""
        x = [one for one, count in zip(self.x, self.counts, strict=True) for _ in range(count)]
        hessian = torch.stack([(c[:, None] * one).T @ one for one, c in zip(x, self.curvature(z), strict=True)])
        hessian.diagonal(dim1=1, dim2=2)[:, :-1].add_(1)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        size = factor.diagonal(dim1=1, dim2=2)
        if bool(((failed != 0) | (size.amin(-1) < 10 * torch.finfo(z.dtype).eps ** 0.5 * size.amax(-1))).any()):
            return self
        return _Problems(x, list(torch.cholesky_inverse(factor)), [1] * len(x), self.weights, self.target)


def _minimise(
    problems: _Problems, now: Float[Tensor, "problem unknown"], tolerance: float, iterations: int
) -> tuple[Float[Tensor, "problem unknown"], bool]:
    """To where the next step promises less than `tolerance` of the value; and whether that was reached."""
    out, unknowns = now.clone(), now.shape[1]
    index = torch.arange(len(now), device=now.device)
    z = problems.margins(now)
    value, share = problems.value(z, now, index), problems.share(z)
    gradient = problems.gradient(problems.residual(z), now)
    done = torch.zeros_like(value, dtype=torch.bool)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    work = 0
    for iteration in range(iterations):
        if 2 * OWN * unknowns * len(now) < work and not problems.stays:
            problems, work = problems.own(z), 0
        if iteration in MEASURED:
            share = problems.share(z)
        direction = _two_loop(problems, gradient, history, share)
        slope = vecdot(direction, gradient)
        near = (~done & (-slope <= 2 * tolerance * value)).nonzero()[:, 0]
        if len(near):  # the value falls, so an older one is asked first
            value[near] = problems.value(z, now, near)
            done[near] = -slope[near] <= 2 * tolerance * value[near]
            going = problems.whole(~done)
            chosen = going.nonzero()[:, 0]
            if len(chosen) <= LEFT * len(now):
                out[index] = now
                if len(chosen) == 0:
                    return out, True
                problems = problems.part(going, chosen)
                index, now, z, gradient, direction, slope, value, share, done = (
                    t[chosen] for t in (index, now, z, gradient, direction, slope, value, share, done)
                )
                history = [(step[chosen], change[chosen], factor[chosen]) for step, change, factor in history]
        work += 4 * len(now)
        direction, slope = direction * ~done[:, None], slope * ~done
        alpha, z, residual = _line_search(problems, z, now, direction, slope)
        step = alpha[:, None] * direction
        now = now + step
        new = problems.gradient(residual, now)
        change, gradient = new - gradient, new
        product = vecdot(step, change)
        history = [*history[-MEMORY + 1 :], (step, change, torch.where(product > 0, 1 / product, 0.0))]
    out[index] = now
    return out, False


def _two_loop(
    problems: _Problems, gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]], share: Tensor
) -> Tensor:
    """The direction of descent (Nocedal and Wright, Numerical Optimization, algorithm 7.4), from the preconditioner."""
    q, alphas = -gradient, []
    for step, change, factor in reversed(history):
        alpha = (factor * vecdot(step, q))[:, None]
        q = torch.addcmul(q, alpha, change, value=-1)
        alphas.append(alpha)
    r = problems.precondition(q, share)
    for (step, change, factor), alpha in zip(history, reversed(alphas), strict=True):
        r = torch.addcmul(r, alpha - (factor * vecdot(change, r))[:, None], step)
    return r


def _line_search(
    problems: _Problems, z: Tensor, now: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where along the direction little of the slope is left: by secants within a bracket, for it is convex. Margins and
    residuals there are returned with it. Only what is not good enough is tried again.
    """
    dz = problems.margins(direction)
    across, square = (vecdot(direction[:, :-1], t[:, :-1]) for t in (now, direction))
    alpha, margins = torch.ones_like(slope), z + dz
    residual = problems.residual(margins)
    here = vecdot(residual, dz) + across + square
    low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    state = (alpha, here, low, slope, low, high, slope, across, square, z, dz, problems.weights, problems.target)
    some = torch.arange(len(z), device=z.device)
    for down, up in SLOPES:
        off = ((state[1] < down * state[6]) | (state[1] > -up * state[6])).nonzero()[:, 0]
        if len(off) == 0:
            break
        some = some[off]
        a, here, before, slope_before, low, high, first, across, square, z, dz, weights, target = (
            t[off] for t in state
        )
        low, high = torch.where(here < 0, a, low), torch.where(here > 0, a, high)
        secant = a - here * (a - before) / (here - slope_before)
        middle = torch.where(high.isinf(), 4 * a, (low + high) / 2)
        a, before = torch.where((secant > low) & (secant < high) & (secant < 10 * a), secant, middle), a
        at = torch.addcmul(z, a[:, None], dz)
        there = torch.addcmul(target, weights, at.sigmoid())
        slope_before, here = here, vecdot(there, dz) + across + a * square
        alpha[some], margins[some], residual[some] = a, at, there
        state = (a, here, before, slope_before, low, high, first, across, square, z, dz, weights, target)
    return alpha, margins, residual
