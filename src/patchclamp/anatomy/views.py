"""How a tensor that passes a module is read as a site, and written back: small lenses, composed left to right.

`get` turns what the module sees into the site's canonical tensor; `put` turns a new canonical tensor into what the
module shall see. `put(x, get(x))` is `x`, bit for bit for the reshaping views and to rounding for the computed ones.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass
class Moment:
    """What is at hand when a hook fires: the module, its input tensor, and the input of the block around it."""

    module: nn.Module
    input: Tensor | None = None
    block_input: Tensor | None = None
    batch: int = 0  # prompts of this pass, where it is known


class View(Protocol):
    def get(self, x: Tensor, at: Moment) -> Tensor: ...
    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor: ...


@dataclass(frozen=True)
class Rows:
    """[prompt * pos, d] as [prompt, pos, d], where an architecture flattens tokens; anything else as it is."""

    def get(self, x: Tensor, at: Moment) -> Tensor:
        if at.block_input is None or x.ndim != 2:
            return x
        return x.reshape(*at.block_input.shape[:2], x.shape[-1])

    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor:
        return new.reshape(x.shape)


@dataclass(frozen=True)
class EachPrompt:
    """[1, pos, d] or [pos, d], which all prompts share, as [prompt, pos, d]; the sum that it enters takes either."""

    def get(self, x: Tensor, at: Moment) -> Tensor:
        return x.expand(max(at.batch, 1), *x.shape[-2:]) if x.ndim == 2 or len(x) == 1 else x

    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor:
        return new


@dataclass(frozen=True)
class Heads:
    """[prompt, pos, head * d] as [prompt, pos, head, d]."""

    heads: int

    def get(self, x: Tensor, at: Moment) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor:
        return new.flatten(-2)


@dataclass(frozen=True)
class Part:
    """A slice of the last dimension, for projections that are fused in one matrix."""

    start: int
    stop: int

    def get(self, x: Tensor, at: Moment) -> Tensor:
        return x[..., self.start : self.stop]

    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor:
        return torch.cat([x[..., : self.start], new, x[..., self.stop :]], dim=-1)


@dataclass(frozen=True)
class Scaled:
    """A constant times the module's output, where the architecture multiplies outside the module."""

    factor: float

    def get(self, x: Tensor, at: Moment) -> Tensor:
        return x * self.factor

    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor:
        return new / self.factor


@dataclass(frozen=True)
class PlusResidual:
    """The block's input plus a sublayer's contribution: `resid_mid`, which no module outputs."""

    factor: float = 1.0

    def get(self, x: Tensor, at: Moment) -> Tensor:
        assert at.block_input is not None
        return at.block_input + (x if self.factor == 1.0 else x * self.factor)

    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor:
        assert at.block_input is not None
        contribution = new - at.block_input
        return contribution if self.factor == 1.0 else contribution / self.factor


@dataclass(frozen=True)
class NormScale:
    """The denominator of a norm: sqrt(mean(x²) + eps), around the mean where the norm is centred."""

    centred: bool
    eps: float

    def get(self, x: Tensor, at: Moment) -> Tensor:
        assert at.input is not None
        source = at.input.to(_exact(at.input))
        if at.block_input is not None and source.ndim == 2:
            source = source.view(*at.block_input.shape[:2], -1)
        if self.centred:
            source = source - source.mean(-1, keepdim=True)
        return (source.pow(2).mean(-1) + self.eps).sqrt()

    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor:
        ratio = (self.get(x, at) / new).reshape(*x.shape[:-1], 1)
        bias = getattr(at.module, "bias", None)
        shifted = x.to(_exact(x)) if bias is None else x.to(_exact(x)) - bias
        scaled = shifted * ratio
        return (scaled if bias is None else scaled + bias).to(x.dtype)


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@dataclass(frozen=True)
class HeadOut:
    """What each head sends out: z[h] @ W_O[h], read beside the out-projection's output, which is their sum plus b_O."""

    heads: int

    def weight(self, module: nn.Module) -> Tensor:
        """W_O as [head, d_head, d_model]."""
        return projection(module).unflatten(0, (self.heads, -1))

    def get(self, x: Tensor, at: Moment) -> Tensor:
        assert at.input is not None
        z = at.input.unflatten(-1, (self.heads, -1))
        return torch.einsum("...hd,hdm->...hm", z, self.weight(at.module).to(z.dtype))

    def put(self, x: Tensor, new: Tensor, at: Moment) -> Tensor:
        return x + (new - self.get(x, at)).sum(-2).reshape(x.shape)


def projection(module: nn.Module) -> Tensor:
    """The weight of a linear module as [in, out], whichever way it is stored."""
    weight = getattr(module, "weight", None)
    if weight is None:
        raise TypeError(f"{type(module).__name__} has no weight that can be viewed as a matrix")
    if weight.is_floating_point() and weight.ndim == 2:
        return weight if type(module).__name__ == "Conv1D" else weight.T
    width = getattr(module, "in_features", None)
    if width is None:
        raise TypeError(f"the weight of {type(module).__name__} is packed and its width is unknown")
    # A quantised matrix is read by what it does to the unit vectors.
    compute = getattr(module, "compute_dtype", None) or torch.float32
    eye = torch.eye(width, device=weight.device, dtype=compute)
    with torch.no_grad():
        out = module(eye)
    bias = getattr(module, "bias", None)
    return out if bias is None else out - bias


def first_tensor(output: Any, path: str) -> int | str:
    """The key of the first tensor among what a module returned."""
    items = (
        output.items() if isinstance(output, dict) else enumerate(output) if isinstance(output, (tuple, list)) else ()
    )
    for key, item in items:
        if isinstance(item, Tensor):
            return key
    raise TypeError(f"module {path!r} returned {type(output).__name__}, which holds no tensor to record")


def replaced(output: Any, key: int | str | None, new: Tensor) -> Any:
    """What a module returned, with one tensor of it replaced."""
    if key is None:
        return new
    if isinstance(output, dict):
        return type(output)(**{**output, key: new})
    items = [new if index == key else item for index, item in enumerate(output)]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
