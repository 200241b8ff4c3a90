"""Routers and experts, whose inner activations no module boundary shows.

A router's logits are the first linear map in its forward pass. Which experts are chosen, and the weight that each one's
output has in their sum, are arguments of the module that holds them (`by_expert` and `by_slot` go between a weight by
expert and one by slot). An expert's neurons are computed beside the model's own kernel, for watched layers only, by the
definition that all its kernels share; the model's output is replaced only where the neurons were edited.
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


def unread(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> str | None:
    """Why this module is not the sum over slots of weight * expert, as called with `inputs`; None where it is."""
    name = type(module).__name__
    if all(t.is_floating_point() for t in inputs):  # Llama 4
        return (
            f"{name} runs every expert on every token: none is chosen by index, and the router's score scales what an "
            "expert reads, not what it adds"
        )
    try:
        hidden, index, weight = routing(inputs, {})
        made = combine(module, neurons(module, hidden, index), index, weight).reshape(output.shape)
    except Exception as error:  # whatever it lacks of the form that experts have
        return f"{name} keeps its experts in a form of its own ({type(error).__name__}: {error})"
    exact = output.dtype in (torch.float32, torch.float64)
    if (made - output).abs().max() > (1e-3 if exact else 5e-2) * output.abs().max():
        return f"what {name} returns is not the sum of its experts' outputs, each times the weight of its slot"
    return None


def rerouted(args: tuple, kwargs: dict, index: Tensor, weight: Tensor) -> tuple[tuple, dict]:
    """The arguments of an experts module with another index and weight in the places of its own."""
    _, old_index, old_weight = routing(args, kwargs)
    new = {id(old_index): index, id(old_weight): weight}
    return tuple(new.get(id(x), x) for x in args), {name: new.get(id(x), x) for name, x in kwargs.items()}


def by_expert(index: Tensor, weight: Tensor, experts: int) -> Tensor:
    """[token, expert]: the weight of each expert's output in the sum, 0 where it is not chosen.

    >>> by_expert(torch.tensor([[2, 0]]), torch.tensor([[0.7, 0.3]]), 4)
    tensor([[0.3000, 0.0000, 0.7000, 0.0000]])
    """
    return weight.new_zeros(len(index), experts).scatter_add(-1, index, weight)


def by_slot(index: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """(index, weight) [token, slot] that amount to `dense` [token, expert], the slots of `index` first.

    Further slots hold experts that have a weight and were not chosen. Where a gradient may be asked for they hold every
    expert: the derivative by a weight of 0 is what the expert would add, and must not come out as 0.

    >>> by_slot(torch.tensor([[2, 0]]), torch.tensor([[0.3, 0.0, 0.7, 0.5]]))
    (tensor([[2, 0, 3]]), tensor([[0.7000, 0.3000, 0.5000]]))
    """
    again = (index[:, :, None] == index[:, None, :]).tril(-1).any(-1)  # one expert in two slots: all in the first
    weight = dense.gather(-1, index).masked_fill(again, 0.0)
    chosen = torch.zeros_like(dense, dtype=torch.bool).scatter(-1, index, True)
    wanted = ~chosen & ((dense != 0) | (dense.requires_grad and torch.is_grad_enabled()))
    further = torch.argsort(wanted.byte(), dim=-1, descending=True, stable=True)[:, : int(wanted.sum(-1).max())]
    unwanted = ~wanted.gather(-1, further)
    # A token that wants fewer repeats an expert of its own: 0 times another's output need not be 0.
    return (
        torch.cat([index, torch.where(unwanted, index[:, :1], further)], -1),
        torch.cat([weight, dense.gather(-1, further).masked_fill(unwanted, 0.0)], -1),
    )


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
