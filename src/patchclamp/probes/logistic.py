"""Logistic regression of many labels at many sites at once, at scikit-learn's optimum.

    Logistic(C=0.1).fit(x, y)                  # minimises 1/2 |w|^2 + C sum_i s_i log(1 + exp(-t_i (w . x_i + b)))

Limited-memory BFGS on all problems together. What makes it quick: labels at one site share its activations, so that
margins and gradients are matrix products; what preconditions one label preconditions all of its site; and a line
search needs only margins, no further product.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.probes.estimator import Estimator

MEMORY = 5
ROUGH = 1e-5
"""The tolerance up to which single precision goes."""
CURVATURE = 0.05
"""Mean of p (1 - p) over rows that the preconditioner assumes."""
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
            x = x / scale
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
    """The minimum of `objective`: most of the way in single precision, the rest in double.

    RuntimeError where it was not reached.
    """
    sites, rows, _ = x.shape
    y, weights = (t.transpose(1, 2).expand(sites, -1, rows) for t in (y, weights))
    shared = weights.mean(1)[..., None]
    centre = (shared * x).sum(1, keepdim=True) / shared.sum(1, keepdim=True)
    x = torch.cat([x - centre, x.new_ones(sites, rows, 1)], -1)  # the last of the unknowns is the bias
    start = x.new_zeros(sites, y.shape[1], x.shape[-1])
    start[..., -1] = torch.logit((weights * y).sum(-1) / weights.sum(-1))
    inverse = _preconditioner(x, shared, y.shape[1])
    rough, exact = (_Problem.of(x, y, weights, inverse, dtype) for dtype in (torch.float32, torch.float64))
    near, _ = _minimise(rough, start.float(), max(tolerance, ROUGH), min(iterations, 100))
    found, reached = _minimise(exact, near.double(), tolerance, iterations)
    if not reached:
        raise RuntimeError(f"no convergence in {iterations} iterations: standardise x, or lower C")
    w, b = found[..., :-1], found[..., -1]
    return w, b - (w * centre).sum(-1)


@dataclass
class _Problem:
    """Rows by unknowns; labels as signs, weights, and weights of yes [site, label, row]; a preconditioner a site."""

    x: Tensor
    sign: Tensor
    weights: Tensor
    weighted: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weights: Tensor, inverse: Tensor, dtype: torch.dtype) -> "_Problem":
        y, weights = y.to(dtype), weights.to(dtype).contiguous()
        return cls(x.to(dtype), 1 - 2 * y, weights, weights * y, inverse.to(dtype))

    def part(self, some: Tensor, order: Tensor) -> "_Problem":
        """Some sites, and some labels of each."""
        own = [_picked(t[some], order) for t in (self.sign, self.weights, self.weighted)]
        return _Problem(self.x[some], own[0], own[1], own[2], self.inverse[some])

    def value(self, z: Tensor, now: Tensor) -> Tensor:
        loss = torch.nn.functional.softplus(z * self.sign).mul_(self.weights).sum(-1)
        return loss + 0.5 * (now[..., :-1] ** 2).sum(-1)

    def residual(self, z: Tensor) -> Tensor:
        return torch.addcmul(self.weighted, self.weights, z.sigmoid(), value=-1).neg_()

    def gradient(self, residual: Tensor, now: Tensor) -> Tensor:
        out = residual @ self.x
        out[..., :-1] += now[..., :-1]
        return out


def _picked(t: Tensor, order: Tensor) -> Tensor:
    """Some labels of each site."""
    return t.gather(1, order if t.ndim == 2 else order[..., None].expand(-1, -1, t.shape[-1]))


def _preconditioner(x: Tensor, shared: Tensor, labels: int) -> Tensor:
    """Inverse of the Hessian where all rows are undecided: whole [site, d, d] where that pays, else its diagonal
    [site, 1, d].
    """
    _, rows, d = x.shape
    whole = d * (2 + 1.7 * d / rows) < PAYS * labels
    gram = (x * shared).transpose(1, 2) @ x if whole else (shared * x**2).sum(1, keepdim=True)
    gram *= CURVATURE
    if not whole:
        gram[..., :-1] += 1
        return 1 / gram
    gram.diagonal(dim1=1, dim2=2)[:, :-1].add_(1)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram))


def _minimise(
    problem: _Problem, start: Float[Tensor, "site label unknown"], tolerance: float, iterations: int
) -> tuple[Float[Tensor, "site label unknown"], bool]:
    """From `start` to where the next step promises less than `tolerance` of the value; and whether that was reached."""
    out, now = start, start
    sites, labels, _ = now.shape
    site = torch.arange(sites, device=now.device)
    label = torch.arange(labels, device=now.device).expand(sites, -1)
    z = now @ problem.x.transpose(1, 2)
    value = problem.value(z, now)
    gradient = problem.gradient(problem.residual(z), now)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(iterations):
        direction = _two_loop(gradient, history, problem.inverse)
        slope = (direction * gradient).sum(-1)
        going = -slope > 2 * tolerance * value
        if not bool(going.all()):  # the value falls, so an older one is only asked when it may decide
            value = problem.value(z, now)
            going = -slope > 2 * tolerance * value
            some, most = going.any(1), int(going.sum(1).max())
            if len(site) and (most == 0 or int(some.sum()) <= 0.7 * len(some) or most <= 0.7 * going.shape[1]):
                out = out.index_put((site[:, None], label), now)
                if most == 0:
                    return out, True
                # What is done leaves: whole sites, and then labels, as many from each site.
                order = going[some].int().argsort(dim=1, descending=True)[:, :most]

                problem, site, label = problem.part(some, order), site[some], _picked(label[some], order)
                now, gradient, direction, slope, z, value, going = (
                    _picked(t[some], order) for t in (now, gradient, direction, slope, z, value, going)
                )
                history = [
                    (_picked(s[some], order), _picked(c[some], order), _picked(f[some], order)) for s, c, f in history
                ]
            direction = direction * going[..., None]
        alpha, z, residual = _line_search(problem, z, now, direction, slope * going)
        step = alpha[..., None] * direction
        now = now + step
        new = problem.gradient(residual, now)
        change = new - gradient
        gradient = new
        product = (step * change).sum(-1)
        history = [*history[-MEMORY + 1 :], (step, change, torch.where(product > 0, 1 / product, 0.0))]
    return out.index_put((site[:, None], label), now), False


def _two_loop(gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]], inverse: Tensor) -> Tensor:
    """The direction of descent (Nocedal and Wright, Numerical Optimization, algorithm 7.4), from the preconditioner."""
    q, alphas = -gradient, []
    for step, change, factor in reversed(history):
        alpha = factor * (step * q).sum(-1)
        q = torch.addcmul(q, alpha[..., None], change, value=-1)
        alphas.append(alpha)
    r = q * inverse if inverse.shape[1] == 1 else q @ inverse
    for (step, change, factor), alpha in zip(history, reversed(alphas), strict=True):
        beta = factor * (change * r).sum(-1)
        r = torch.addcmul(r, (alpha - beta)[..., None], step)
    return r


def _line_search(
    problem: _Problem, z: Tensor, now: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where along the direction the slope is a part of what it was: by secants within a bracket, for it is convex."""
    dz = direction @ problem.x.transpose(1, 2)
    square = (direction[..., :-1] ** 2).sum(-1)
    across = (direction[..., :-1] * now[..., :-1]).sum(-1)
    alpha = torch.ones_like(slope)
    low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    before, slope_before = low, slope
    for _ in range(40):
        at = torch.addcmul(z, alpha[..., None], dz)
        residual = problem.residual(at)
        here = (residual * dz).sum(-1) + across + alpha * square
        off = (here < 0.4 * slope) | (here > -0.2 * slope)
        if not bool(off.any()):
            break
        low, high = torch.where(here < 0, alpha, low), torch.where(here > 0, alpha, high)
        secant = alpha - here * (alpha - before) / (here - slope_before)
        middle = torch.where(high.isinf(), 4 * alpha, (low + high) / 2)
        inside = (secant > low) & (secant < high) & (secant < 10 * alpha)
        before, slope_before = torch.where(off, alpha, before), torch.where(off, here, slope_before)
        alpha = torch.where(off, torch.where(inside, secant, middle), alpha)
    return alpha, at, residual
