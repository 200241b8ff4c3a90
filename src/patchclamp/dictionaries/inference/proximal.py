"""ISTA and FISTA: codes z that minimise |x - z D|^2 / 2 + l1 |z|_1, with z >= 0 unless `signed`.

    solution = fista(decoder, x, l1=0.1)            # .codes, .iterations, .gap: how far from the optimum, at most

The step is one over the largest eigenvalue of D D^T. A row is done, and leaves the batch, when its duality gap is at
most `tolerance` of half its squared norm: a certificate, since the gap bounds the distance to the minimum.
"""

import warnings
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchclamp.dictionaries.codes import Codes, strongest
from patchclamp.dictionaries.inference.solution import Solution, Unsolved, checked, in_blocks

EVERY = 10
"""Iterations between two looks at which rows are done; a look costs about one iteration."""

Stop = Literal["gap", "support"]


def fista(
    decoder: Float[Tensor, "width d"],
    target: Float[Tensor, "row d"],
    l1: float,
    *,
    signed: bool = False,
    tolerance: float = 1e-5,
    iterations: int = 5000,
    stop: Stop = "gap",
    start: Codes | None = None,
) -> Solution:
    """Accelerated proximal gradient (Beck and Teboulle 2009) with a restart of the momentum of each row that overshoots
    (O'Donoghue and Candes 2015).

    `stop="support"` ends a row when no code went on or off between two looks, which is sooner and promises nothing
    about values. `start` are codes to begin from. Warns, with the share of rows and the worst gap, where `iterations`
    were not enough.
    """
    return _solve(decoder, target, l1, signed, tolerance, iterations, stop, start, accelerate=True)


def ista(
    decoder: Float[Tensor, "width d"],
    target: Float[Tensor, "row d"],
    l1: float,
    *,
    signed: bool = False,
    tolerance: float = 1e-5,
    iterations: int = 5000,
    stop: Stop = "gap",
    start: Codes | None = None,
) -> Solution:
    """Proximal gradient without momentum (Daubechies et al. 2004): every iteration lowers the objective; arguments as
    for `fista`, which needs far fewer of them.
    """
    return _solve(decoder, target, l1, signed, tolerance, iterations, stop, start, accelerate=False)


def lipschitz(decoder: Float[Tensor, "width d"]) -> float:
    """The largest eigenvalue of D D^T, the square of the spectral norm."""
    width, d = decoder.shape
    gram = decoder.T @ decoder if d <= width else decoder @ decoder.T
    return float(torch.linalg.eigvalsh(gram.double())[-1])


def objective(
    decoder: Float[Tensor, "width d"], target: Float[Tensor, "row d"], z: Float[Tensor, "row width"], l1: float
) -> Float[Tensor, " row"]:
    """|x - z D|^2 / 2 + l1 |z|_1 of each row."""
    return ((target - z @ decoder) ** 2).sum(1) / 2 + l1 * z.abs().sum(1)


def duality_gap(
    decoder: Float[Tensor, "width d"],
    target: Float[Tensor, "row d"],
    z: Float[Tensor, "row width"],
    l1: float,
    signed: bool = False,
) -> Float[Tensor, " row"]:
    """How far the objective of z is above the minimum at most, as a share of |x|^2 / 2; 0 for a row of zeros.

    The dual point is the residual, scaled as far as the constraint D u <= l1 (|D u| <= l1 if signed) allows.
    """
    residual = target - z @ decoder
    correlations = residual @ decoder.T
    largest = (correlations.abs() if signed else correlations).amax(1).clamp_min(0).double()
    x, r = target.double(), residual.double()
    both, own = (x * r).sum(1), (r * r).sum(1)
    scale = torch.minimum(both / own.clamp_min(1e-300), l1 / largest.clamp_min(1e-300)).clamp_min(0)
    dual = scale * both - scale**2 * own / 2
    primal = own / 2 + l1 * z.abs().sum(1, dtype=torch.float64)
    size = (x * x).sum(1) / 2
    return torch.where(size > 0, (primal - dual) / size.clamp_min(1e-300), 0).clamp_min(0).to(target.dtype)


def _solve(
    decoder: Tensor,
    target: Tensor,
    l1: float,
    signed: bool,
    tolerance: float,
    iterations: int,
    stop: Stop,
    start: Codes | None,
    accelerate: bool,
) -> Solution:
    checked(decoder, target)
    if not l1 > 0:
        largest = float((target[:1024] @ decoder.T).amax()) if len(target) else 1.0
        raise ValueError(f"l1={l1}: expected a positive number; at {largest:.3g} all codes are 0, try a tenth of it")
    if tolerance < 0 or iterations < 1:
        raise ValueError(f"tolerance={tolerance}, iterations={iterations}: expected at least 0 and at least 1")
    if stop not in ("gap", "support"):
        raise ValueError(f"stop={stop!r}: expected 'gap' or 'support'")
    if start is not None and (start.width, len(start.values)) != (len(decoder), len(target)):
        raise ValueError(f"start has {len(start.values)} rows of {start.width} codes, not {len(target)}")
    step = 1 / max(lipschitz(decoder), 1e-30)
    gram = decoder @ decoder.T if uses_gram(*decoder.shape) else None

    def block(x: Tensor, rows: slice) -> Solution:
        begin = x.new_zeros(len(x), len(decoder))
        if start is not None:
            begin.scatter_(1, start.indices[rows], start.values[rows].to(x))
        return _block(decoder, gram, x, begin, l1, step, signed, tolerance, iterations, stop, accelerate)

    with torch.no_grad():
        solution = in_blocks(target, len(decoder), block)
        if solution.gap is not None and stop == "gap" and (missed := solution.gap > tolerance).any():
            warnings.warn(
                f"{missed.float().mean():.1%} of the rows did not reach tolerance={tolerance:g} in "
                f"{iterations} iterations; the worst gap is {solution.gap.max():.2g}",
                Unsolved,
                stacklevel=3,
            )
    return solution


def uses_gram(width: int, d: int) -> bool:
    """Whether one product with D D^T is cheaper than two with D."""
    return width <= 2 * d


def _block(
    decoder: Tensor,
    gram: Tensor | None,
    x: Tensor,
    z: Tensor,
    l1: float,
    step: float,
    signed: bool,
    tolerance: float,
    iterations: int,
    stop: Stop,
    accelerate: bool,
) -> Solution:
    found, gaps = torch.zeros_like(z), x.new_zeros(len(x))
    taken = torch.full((len(x),), iterations, device=x.device)
    where = torch.arange(len(x), device=x.device)
    right = x @ decoder.T if gram is not None else None
    point, momentum, support = z, x.new_ones(len(x), 1), z != 0
    for iteration in range(1, iterations + 1):
        new = (
            torch.addmm(right, point, gram, alpha=-1)
            if right is not None and gram is not None
            else (x - point @ decoder) @ decoder.T
        )
        new.mul_(step).add_(point)
        new = torch.nn.functional.softshrink(new, l1 * step) if signed else new.sub_(l1 * step).clamp_min_(0)
        if accelerate:
            change = new - z
            overshot = ((point - new) * change).sum(1, keepdim=True) > 0
            following = torch.where(overshot, 1, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
            weight = torch.where(overshot, 0, (momentum - 1) / following)
            point, momentum = change.mul_(weight).add_(new), following
        else:
            point = new
        z = new
        if iteration % EVERY and iteration < iterations:
            continue
        gap = duality_gap(decoder, x, z, l1, signed)
        active = z != 0
        done = gap <= tolerance if stop == "gap" else _same(active, support)
        support = active
        if iteration == iterations:
            done = torch.ones_like(done)
        elif not done.any():
            continue
        rows = where[done]
        found[rows], gaps[rows], taken[rows] = z[done], gap[done], iteration
        if done.all():
            break
        left = ~done
        x, z, point, momentum, support, where = (t[left] for t in (x, z, point, momentum, support, where))
        right = right[left] if right is not None else None
    return Solution(strongest(found, signed), taken, gaps)


def _same(active: Bool[Tensor, "row width"], before: Bool[Tensor, "row width"]) -> Bool[Tensor, " row"]:
    return (active == before).all(1)
