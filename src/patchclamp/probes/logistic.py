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

MEMORY = 4
CURVATURE = 0.15
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
    tolerance: float = 1e-7
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
    tolerance: float = 1e-7,
    iterations: int = 1000,
) -> tuple[Float[Tensor, "site label d"], Float[Tensor, "site label"]]:
    """The minimum of `objective`. RuntimeError where it was not reached."""
    sites, rows, _ = x.shape
    y, weights = (t.transpose(1, 2).expand(sites, -1, rows).contiguous() for t in (y, weights))
    shared = weights.mean(1)[..., None]
    centre = (shared * x).sum(1, keepdim=True) / shared.sum(1, keepdim=True)
    x = torch.cat([x - centre, x.new_ones(sites, rows, 1)], -1)  # the last of the unknowns is the bias
    problem = _Problem(x, y, weights, weights * y, _preconditioner(x, shared, y.shape[1]))
    found = _minimise(problem, tolerance, iterations)
    w, b = found[..., :-1], found[..., -1]
    return w, b - (w * centre).sum(-1)


@dataclass
class _Problem:
    """Rows by unknowns; labels, weights and their product [site, label, row]; the preconditioner of each site."""

    x: Tensor
    y: Tensor
    weights: Tensor
    weighted: Tensor
    inverse: Tensor

    def __getitem__(self, some: Tensor) -> "_Problem":
        return _Problem(*(t[some] for t in (self.x, self.y, self.weights, self.weighted, self.inverse)))

    def value(self, z: Tensor, now: Tensor) -> Tensor:
        loss = torch.nn.functional.softplus(z * (1 - 2 * self.y)).mul_(self.weights).sum(-1)
        return loss + 0.5 * (now[..., :-1] ** 2).sum(-1)

    def residual(self, z: Tensor) -> Tensor:
        return torch.addcmul(self.weighted, self.weights, z.sigmoid(), value=-1).neg_()

    def gradient(self, residual: Tensor, now: Tensor) -> Tensor:
        out = residual @ self.x
        out[..., :-1] += now[..., :-1]
        return out


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


def _minimise(problem: _Problem, tolerance: float, iterations: int) -> Float[Tensor, "site label unknown"]:
    sites, labels, _ = problem.y.shape
    now = problem.x.new_zeros(sites, labels, problem.x.shape[-1])
    share = problem.weighted.sum(-1) / problem.weights.sum(-1)
    now[..., -1] = torch.logit(share)
    out, index = now.clone(), torch.arange(sites, device=now.device)
    z = now[..., -1:].expand(problem.y.shape)
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
            some = going.any(1)
            if not bool(some.any()):
                out[index] = now
                return out
            if int(some.sum()) <= 0.7 * len(some):  # sites that are done leave
                out[index] = now
                problem = problem[some]
                index, now, gradient, direction = index[some], now[some], gradient[some], direction[some]
                slope, z, value, going = slope[some], z[some], value[some], going[some]
                history = [(s[some], c[some], f[some]) for s, c, f in history]
            direction = direction * going[..., None]
        alpha, z, residual = _line_search(problem, z, now, direction, slope * going)
        step = alpha[..., None] * direction
        now = now + step
        new = problem.gradient(residual, now)
        change = new - gradient
        gradient = new
        product = (step * change).sum(-1)
        history = [*history[-MEMORY + 1 :], (step, change, torch.where(product > 0, 1 / product, 0.0))]
    raise RuntimeError(f"logistic regression did not converge in {iterations} iterations: standardise x, or lower C")


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
    """Where along the direction the slope is a tenth of what it was: by secants within a bracket, for it is convex."""
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
        off = here.abs() > 0.1 * slope.abs()
        if not bool(off.any()):
            break
        low, high = torch.where(here < 0, alpha, low), torch.where(here > 0, alpha, high)
        secant = alpha - here * (alpha - before) / (here - slope_before)
        middle = torch.where(high.isinf(), 4 * alpha, (low + high) / 2)
        inside = (secant > low) & (secant < high) & (secant < 10 * alpha)
        before, slope_before = torch.where(off, alpha, before), torch.where(off, here, slope_before)
        alpha = torch.where(off, torch.where(inside, secant, middle), alpha)
    return alpha, at, residual
