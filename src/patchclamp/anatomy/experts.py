"""Routers and experts, whose inner activations no module boundary shows.

A router's logits are the first linear map in its forward pass. An expert's neurons are computed beside the model's own
kernel, for watched layers only, by the definition that all its kernels share; the model's output is replaced only
where the neurons were edited.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class RouterWatch(TorchFunctionMode):
    """Shows the router's logits [prompt * pos, expert] to `visit` before the experts are chosen."""

    def __init__(self, experts: int, visit: Callable[[Tensor], Tensor]):
        super().__init__()
        self.experts, self.visit, self.done = experts, visit, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.done and func in (F.linear, torch.matmul, Tensor.matmul) and result.shape[-1] == self.experts:
            self.done = True
            return self.visit(result)
        return result


def routing(args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden [token, d], index [token, slot], weight [token, slot]) that an experts module was called with."""
    given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    hidden = given[0].reshape(-1, given[0].shape[-1])
    index = next(t for t in given if not t.is_floating_point())
    weight = next(t for t in given[1:] if t.is_floating_point())
    return hidden, index, weight


def neurons(module: nn.Module, hidden: Tensor, index: Tensor) -> Tensor:
    """[token, slot, neuron]: the input of each chosen expert's down-projection."""
    flat = index.reshape(-1)
    out = None
    for expert in flat.unique().tolist():
        chosen = (flat == expert).nonzero().flatten()
        x = hidden[chosen // index.shape[-1]]
        name = "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"
        y = _linear(module, name, expert, x)
        y = module._apply_gate(y) if name == "gate_up_proj" else module.act_fn(y)  # type: ignore[operator]
        if out is None:
            out = y.new_zeros(len(flat), y.shape[-1])
        out = out.index_copy(0, chosen, y)
    assert out is not None
    return out.view(*index.shape, -1)


def combine(module: nn.Module, post: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """[token, d]: the weighted sum of the chosen experts' outputs, from their neurons."""
    flat = index.reshape(-1)
    inputs = post.reshape(len(flat), -1)
    out = None
    for expert in flat.unique().tolist():
        chosen = (flat == expert).nonzero().flatten()
        y = _linear(module, "down_proj", expert, inputs[chosen])
        if out is None:
            out = y.new_zeros(len(flat), y.shape[-1])
        out = out.index_copy(0, chosen, y)
    assert out is not None
    return (out.view(*index.shape, -1) * weight[..., None].to(out.dtype)).sum(-2)


def _linear(module: nn.Module, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias", None)
    transposed = getattr(module, "is_transposed", weight.shape[0] == x.shape[-1] != weight.shape[1])
    y = x @ (weight if transposed else weight.T)
    return y if bias is None else y + bias[expert]
