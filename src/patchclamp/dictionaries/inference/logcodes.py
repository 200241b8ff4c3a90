"""Codes by gradient descent on their logarithms: `optimise(decoder, x, l1=0.1, steps=300)`.

The descent of arXiv:2411.13117 (sparse coding, and an encoder's codes improved at inference time): z = exp(t) is
positive by construction and never 0, so that what has become small is cut at the end.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries.codes import Codes, strongest
from patchclamp.dictionaries.inference.solution import Solution, checked, in_blocks


def optimise(
    decoder: Float[Tensor, "width d"],
    target: Float[Tensor, "row d"],
    l1: float,
    *,
    steps: int = 500,
    learning_rate: float = 0.1,
    start: Codes | None = None,
    cut: float = 0.01,
) -> Solution:
    """Minimise |x - z D|^2 / 2 + l1 |z|_1 over log z with Adam, all codes of a block of rows at once.

    `start` are codes to begin from, such as an encoder's; latents that are 0 there begin at `cut` of their row's
    largest. Codes below that share of their row's largest are 0 in what is returned.
    """
    checked(decoder, target)
    if not l1 > 0 or steps < 1 or not learning_rate > 0 or not 0 < cut < 1:
        raise ValueError(
            f"l1={l1}, steps={steps}, learning_rate={learning_rate}, cut={cut}: expected positive, cut < 1"
        )

    def block(x: Tensor, rows: slice) -> Solution:
        size = x.norm(dim=1, keepdim=True).clamp_min(1e-6) / decoder.norm(dim=1).mean()
        if start is None:
            z = (size * len(decoder) ** -0.5).expand(-1, len(decoder)).contiguous()
        else:
            z = x.new_zeros(len(x), len(decoder)).scatter_(1, start.indices[rows], start.values[rows].to(x))
            largest = z.amax(1, keepdim=True)
            z = torch.maximum(z, cut * torch.where(largest > 0, largest, size))
        logs = z.log()
        first, second = torch.zeros_like(logs), torch.zeros_like(logs)
        for step in range(1, steps + 1):
            slope = torch.addmm(-x, z, decoder) @ decoder.T
            slope.add_(l1).mul_(z)
            first.lerp_(slope, 0.1)
            second.mul_(0.999).addcmul_(slope, slope, value=0.001)
            scale = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
            logs.addcdiv_(first, scale, value=-learning_rate / (1 - 0.9**step))
            z = logs.exp()
        z = torch.where(z >= cut * z.amax(1, keepdim=True), z, 0)
        return Solution(strongest(z), torch.full((len(x),), steps, device=x.device))

    with torch.no_grad():
        return in_blocks(target, len(decoder), block)
