"""The products between rows and their active latents, forward and backward, which never build [row, width].

    active = Active.of(indices, width)                    # which latents, for each row
    values = encode(x, weight, bias, active, values)      # the chosen pre-activations, with their gradients
    y = decode(values, weight, active)                    # sum of values times decoder rows

Everything is one of three products of compressed sparse rows (CSR): a sum of rows (decode), sampled dot products
(gradient of the values), and its transpose (gradients of both weights), for which the pairs are sorted by latent once.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class Active:
    """The (row, latent) pairs that are active, row by row: row r has pairs `start[r]` to `start[r + 1]`."""

    start: Int[Tensor, " rows_and_one"]
    latents: Int[Tensor, " pair"]
    width: int

    @classmethod
    def of(cls, indices: Int[Tensor, "row k"], width: int) -> "Active":
        """The same number of pairs in every row."""
        rows, k = indices.shape
        return cls(torch.arange(0, rows * k + 1, k, device=indices.device), indices.reshape(-1), width)

    @property
    def rows(self) -> int:
        return len(self.start) - 1

    @cached_property
    def row(self) -> Int[Tensor, " pair"]:
        """The row of each pair."""
        return torch.repeat_interleave(
            torch.arange(self.rows, device=self.start.device), self.start.diff(), output_size=len(self.latents)
        )

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Int[Tensor, " width_and_one"]]:
        """The pairs sorted by latent: their order, their rows, and where each latent starts."""
        order = self.latents.argsort(stable=True)
        start = torch.zeros(self.width + 1, dtype=torch.long, device=order.device)
        torch.cumsum(torch.bincount(self.latents, minlength=self.width), 0, out=start[1:])
        return order, self.row[order], start

    def sum(self, values: Float[Tensor, " pair"], weight: Float[Tensor, "width d"]) -> Float[Tensor, "row d"]:
        """For each row the sum of its latents' weights times values."""
        return embedding_bag(self.latents, weight, self.start[:-1], per_sample_weights=values, mode="sum")

    def dot(self, rows: Float[Tensor, "row d"], weight: Float[Tensor, "width d"]) -> Float[Tensor, " pair"]:
        """For each pair the dot product of the row and the latent's weight."""
        zeros = rows.new_zeros(len(self.latents))
        pattern = _csr(self.start, self.latents, zeros, (self.rows, self.width))
        return torch.sparse.sampled_addmm(pattern, rows, weight.t(), beta=0.0).values()

    def spread(
        self, values: Float[Tensor, " pair"], rows: Float[Tensor, "row d"], into: Float[Tensor, "width d"]
    ) -> None:
        """Add to each latent's row of `into` the sum, over the rows where it is active, of row times value."""
        order, row, start = self.by_latent
        pattern = _csr(start, row, values[order], (self.width, self.rows))
        torch.addmm(into, pattern, rows, out=into)

    def total(self, values: Float[Tensor, " pair"]) -> Float[Tensor, " width"]:
        """The sum of each latent's values."""
        return values.new_zeros(self.width).index_add_(0, self.latents, values)


with warnings.catch_warnings():  # torch says once in each process that its CSR tensors are in beta: here, unheard
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def _csr(start: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(start, columns, values, shape, check_invariants=False)


def encode(
    x: Float[Tensor, "row d"],
    weight: Float[Tensor, "width d"],
    bias: Float[Tensor, " width"],
    active: Active,
    values: Float[Tensor, " pair"],
    grad: Float[Tensor, "width d"] | None = None,
) -> Float[Tensor, " pair"]:
    """The pre-activations `values` = (x weight^T + bias) at the active pairs, which the caller has computed already,
    with gradients to x, weight and bias.

    With `grad`, the weight's gradient is added to it in place and autograd sees none: a fresh [width, d] tensor in each
    step costs more than the product that fills it.
    """
    return _Encode.apply(x, weight, bias, active, values, grad)  # pyright: ignore[reportReturnType]


def decode(
    values: Float[Tensor, " pair"],
    weight: Float[Tensor, "width d"],
    active: Active,
    grad: Float[Tensor, "width d"] | None = None,
) -> Float[Tensor, "row d"]:
    """The sum of decoder rows times values, with gradients to both; `grad` as in `encode`."""
    return _Decode.apply(values, weight, active, grad)  # pyright: ignore[reportReturnType]


class _Encode(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, active: Active, values: Tensor, grad: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.active, ctx.grad = active, grad
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        x, weight = ctx.saved_tensors
        active: Active = ctx.active
        grad_x = active.sum(g, weight) if ctx.needs_input_grad[0] else None
        grad_weight = _spread(ctx, 1, active, g, x, weight)
        grad_bias = active.total(g) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None, None


class _Decode(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, active: Active, grad: Any) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.active, ctx.grad = active, grad
        return active.sum(values, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        g = grads[0].contiguous()
        values, weight = ctx.saved_tensors
        active: Active = ctx.active
        grad_values = active.dot(g, weight) if ctx.needs_input_grad[0] else None
        return grad_values, _spread(ctx, 1, active, values, g, weight), None, None


def _spread(ctx: Any, which: int, active: Active, values: Tensor, rows: Tensor, weight: Tensor) -> Tensor | None:
    if ctx.grad is not None:
        active.spread(values, rows, ctx.grad)
        return None
    if not ctx.needs_input_grad[which]:
        return None
    into = torch.zeros_like(weight)
    active.spread(values, rows, into)
    return into
