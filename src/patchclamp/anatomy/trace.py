"""One traced forward pass: which modules were called, in what order, on which tensors, and where attention is computed.

The trace adds noise to the output of every module that owns weights. Each tensor is then different from every other,
so that "the block's output is its input plus these two tensors" can be read off the values, whatever the weights are:
also where a compiled or pruned model has heads that are exactly zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
PRODUCT = {
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.baddbmm,
}
SDPA = {F.scaled_dot_product_attention}


@dataclass
class Call:
    """One call of one module: tensors by argument (place or name) and by item of the output (None: all of it)."""

    path: str
    module: nn.Module
    start: int
    end: int = -1
    inputs: dict[int | str, Tensor] = field(default_factory=dict)
    outputs: dict[int | str | None, Tensor] = field(default_factory=dict)
    raw: Tensor | None = None  # a weighted leaf's output before noise
    volatile: set[tuple[str, int | str | None]] = field(default_factory=set)  # ("output", key): changed in place later

    def within(self, other: "Call") -> bool:
        return other.start < self.start and self.end < other.end


@dataclass
class Event:
    """One piece of attention arithmetic, and the innermost module that it happened in."""

    kind: str  # "product", "softmax" or "sdpa"
    path: str
    time: int
    operands: tuple[Tensor, ...]
    result: Tensor


@dataclass
class Trace:
    """What one forward pass did."""

    calls: list[Call]
    events: list[Event]
    output: object

    def of(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    def inside(self, block: Call) -> list[Call]:
        """Calls within `block`, in the order in which they returned."""
        return sorted((call for call in self.calls if call.within(block)), key=lambda call: call.end)


def tensors_of(value: object) -> dict:
    """Floating or integer tensors of a module's output, by item; {None: tensor} where the output is one tensor."""
    if isinstance(value, Tensor):
        return {None: value}
    if isinstance(value, dict):  # ModelOutput
        return {key: item for key, item in value.items() if isinstance(item, Tensor)}
    if isinstance(value, (tuple, list)):
        return {index: item for index, item in enumerate(value) if isinstance(item, Tensor)}
    return {}


def product_operands(func, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    """Left and right factor of a matrix product in any of its spellings."""
    if func in (torch.baddbmm, Tensor.baddbmm):
        left = kwargs.get("batch1", args[1] if len(args) > 1 else None)
        right = kwargs.get("batch2", args[2] if len(args) > 2 else None)
    else:
        left, right = args[0], kwargs.get("other", kwargs.get("mat2", args[1] if len(args) > 1 else None))
    assert left is not None and right is not None
    return left, right


class _Listener(TorchFunctionMode):
    """Notes softmax, products and fused attention with the module in which they happen."""

    def __init__(self, tracer: "_Tracer"):
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in PRODUCT:
            self.tracer.note("product", product_operands(func, args, kwargs), result)
        elif func in SOFTMAX:
            self.tracer.note("softmax", (kwargs.get("input", args[0] if args else None),), result)
        elif func in SDPA:
            names = ("query", "key", "value")
            operands = tuple(kwargs.get(name, args[i] if i < len(args) else None) for i, name in enumerate(names))
            self.tracer.note("sdpa", operands, result)
        return result


class _Tracer:
    def __init__(self, noise: float, seed: int):
        self.clock = 0
        self.stack: list[Call] = []
        self.calls: list[Call] = []
        self.events: list[Event] = []
        self.noise = noise
        self.generator = torch.Generator().manual_seed(seed)
        self.versions: list[tuple[Call, str, int | str | None, Tensor, int]] = []

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def keep(self, call: Call, side: str, tensors: dict) -> dict:
        """Copies, since some architectures add in place to what a module returned."""
        self.versions += [(call, side, key, tensor, tensor._version) for key, tensor in tensors.items()]
        return {key: tensor.clone() for key, tensor in tensors.items()}

    def note(self, kind: str, operands: tuple, result: Tensor) -> None:
        if not self.stack:
            return
        copies = tuple(operand.clone() for operand in operands)
        self.events.append(Event(kind, self.stack[-1].path, self.tick(), copies, result.clone()))

    def enter(self, path: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        call = Call(path, module, self.tick())
        call.inputs = self.keep(call, "input", {**tensors_of(args), **tensors_of(kwargs)})
        self.stack.append(call)
        self.calls.append(call)

    def leave(self, module: nn.Module, output: object):
        call = self.stack.pop()
        replaced = output
        leaf = next(module.children(), None) is None and next(module.parameters(), None) is not None
        if leaf and isinstance(output, Tensor) and output.is_floating_point():
            call.raw = output.clone()
            noise = torch.randn(output.shape, generator=self.generator).to(output)
            replaced = output + self.noise * noise
        call.outputs = self.keep(call, "output", tensors_of(replaced))
        call.end = self.tick()
        return replaced if replaced is not output else None


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Dropout off for a while; every module's own `training` flag is put back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def trace(model: nn.Module, inputs: dict, *, noise: float = 1.0, seed: int = 0) -> Trace:
    """Run `model(**inputs)` once with noise and return what it did; the model is left as it was."""
    tracer = _Tracer(noise, seed)
    handles = []
    for path, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(
                lambda mod, args, kwargs, path=path: tracer.enter(path, mod, args, kwargs), with_kwargs=True
            )
        )
        handles.append(module.register_forward_hook(lambda mod, args, output: tracer.leave(mod, output)))
    try:
        with torch.no_grad(), evaluation(model), _Listener(tracer):
            output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    for call, side, key, tensor, version in tracer.versions:
        if tensor._version != version:
            call.volatile.add((side, key))
    return Trace(tracer.calls, tracer.events, output)
