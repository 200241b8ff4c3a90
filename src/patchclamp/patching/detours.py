"""Modules taken by another way for the length of a `with`: other arguments, fewer positions, or not called at all.

with hooked(module, before=fn), returning(other, lambda: output), at_answers(mlp, columns):
    model(...)

All of it holds in the thread that opened it alone, and leaves the modules as they were.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn


@contextmanager
def hooked(module: nn.Module, *, before: Callable | None = None, after: Callable | None = None) -> Iterator[None]:
    """`before(args, kwargs)` may give other arguments, `after(args, kwargs, output)` another output."""
    owner, handles = threading.get_ident(), []

    def ahead(mod: nn.Module, args: tuple, kwargs: dict):
        return before(args, kwargs) if before and threading.get_ident() == owner else None

    def behind(mod: nn.Module, args: tuple, kwargs: dict, output: Any):
        return after(args, kwargs, output) if after and threading.get_ident() == owner else None

    if before:
        handles.append(module.register_forward_pre_hook(ahead, with_kwargs=True))
    if after:
        handles.append(module.register_forward_hook(behind, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def returning(module: nn.Module, output: Callable[[], Any]) -> Iterator[None]:
    """The module is not run: it returns `output()`."""
    own, owner, kept = module.forward, threading.get_ident(), module.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return output() if threading.get_ident() == owner else own(*args, **kwargs)

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward", None)
        if kept is not None:  # a library's own wrapper of it
            module.__dict__["forward"] = kept


@contextmanager
def at_answers(module: nn.Module, columns: Int[Tensor, "row"]) -> Iterator[None]:
    """The module sees one position of each row; elsewhere it returns zeros, which nothing may read.

    A module that takes anything but one tensor [row, pos, feature] is left alone.
    """
    rows = torch.arange(len(columns), device=columns.device)
    shapes: list[torch.Size] = []

    def gather(args: tuple, kwargs: dict):
        shapes.clear()
        if len(args) != 1 or kwargs or args[0].ndim != 3:
            return None
        shapes.append(args[0].shape)
        return (args[0][rows, columns][:, None],), kwargs

    def scatter(args: tuple, kwargs: dict, output: Any):
        if not shapes or not isinstance(output, Tensor):
            return None
        whole = output.new_zeros((*shapes[0][:2], output.shape[-1]))
        whole[rows, columns] = output[:, 0]
        return whole

    with hooked(module, before=gather, after=scatter):
        yield
