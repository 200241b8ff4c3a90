"""What a traced forward pass says about one block: which tensors it adds to its stream, and which modules make them."""

import itertools
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchclamp.anatomy.trace import Call, Trace

_ROWS = 512  # entries of each tensor that the fits look at


@dataclass(frozen=True)
class Term:
    """One summand: the output (or the item `key` of the output) of the call, times `factor`."""

    call: Call
    key: int | str | None
    factor: float

    @property
    def tensor(self) -> Tensor:
        return self.call.outputs[self.key]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values in the same order, however they are shaped."""
    if a.numel() != b.numel() or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1), b.to(a.device).reshape(-1))


def is_norm(call: Call) -> bool:
    """A leaf that returns the shape it was given and whose weights, if any, are vectors."""
    module = call.module
    source = next(iter(call.inputs.values()), None)
    out = call.outputs.get(None)
    if source is None or out is None or source.shape != out.shape or next(module.children(), None) is not None:
        return False
    if "norm" in type(module).__name__.lower():
        return True
    weight = getattr(module, "weight", None)
    return weight is not None and weight.ndim == 1 and isinstance(module, nn.LayerNorm)


def is_linear(module: nn.Module) -> bool:
    """Linear, Conv1D, quantised or adapted linear layers: one matrix, whatever its storage."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return True
    return type(module).__name__ == "Conv1D" and getattr(module, "weight", None) is not None


def norm_form(call: Call) -> tuple[bool, float] | None:
    """(centred, eps) of a norm, read off its values: out / normalised is one number per feature (plus a bias)."""
    if call.raw is None:
        return None
    source = next(iter(call.inputs.values())).reshape(-1, call.raw.shape[-1]).double()
    raw = call.raw.reshape(source.shape).double()
    names = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps")
    eps = next(
        (float(getattr(call.module, n)) for n in names if isinstance(getattr(call.module, n, None), float)), None
    )
    if eps is None:
        return None
    bias = getattr(call.module, "bias", None)
    shifted = raw if bias is None else raw - bias.double()
    for centred in (True, False) if bias is not None else (False, True):
        x = source - source.mean(-1, keepdim=True) if centred else source
        normal = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        gain = (normal * shifted).sum(0) / normal.pow(2).sum(0).clamp_min(1e-12)
        error = (normal * gain - shifted).norm()
        if error <= 2e-2 * shifted.norm() + 1e-6:
            return centred, eps
    return None


def solve(target: Tensor, terms: list[tuple[Call, int | str | None]], most: int = 3) -> list[Term] | None:
    """The fewest tensors whose weighted sum is `target`, or None; noise in the trace makes the answer unique."""
    flat = target.reshape(-1)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(flat.numel(), (min(_ROWS, flat.numel()),), generator=generator)
    wanted = flat[picks.to(flat.device)].double().cpu()
    size = wanted.norm()
    if size == 0:
        return []
    columns = []
    for call, key in terms:
        tensor = call.outputs[key]
        if tensor.numel() != target.numel():
            tensor = tensor.expand(target.shape)
        columns.append(tensor.reshape(-1)[picks.to(tensor.device)].double().cpu())
    # A summand may be a thousand times smaller than its neighbours, so that a sum without it is nearly right: the exact
    # one is looked for first.
    tolerances = (3e-2,) if target.dtype in (torch.float16, torch.bfloat16) else (5e-5, 1e-3)
    for tolerance, count in itertools.product(tolerances, range(1, most + 1)):
        for chosen in itertools.combinations(range(len(terms)), count):
            matrix = torch.stack([columns[i] for i in chosen], dim=1)
            factors = torch.linalg.lstsq(matrix, wanted).solution
            if not bool(torch.isfinite(factors).all()):
                continue
            if (matrix @ factors - wanted).norm() <= tolerance * size and bool((factors.abs() > 1e-4).all()):
                return [Term(*terms[i], _tidy(float(f), target.dtype)) for i, f in zip(chosen, factors, strict=True)]
    return None


def _tidy(factor: float, dtype: torch.dtype) -> float:
    """A fitted factor without its rounding: multipliers in configurations are short decimals."""
    near = round(factor, 4 if dtype in (torch.float32, torch.float64) else 2)
    return near if abs(near - factor) < 2e-3 * max(1.0, abs(factor)) else factor


def stream_tensors(calls: list[Call], result: Tensor) -> list[tuple[Call, int | str | None]]:
    """Outputs that could be summands of `result`; of equal tensors, the outermost module that returns it.

    A module that is called twice (one dropout for both sublayers) is no address, and is passed over.
    """
    found: list[tuple[Call, int | str | None]] = []
    times = Counter(call.path for call in calls)
    for call in calls:
        if times[call.path] > 1:
            continue
        for key, tensor in call.outputs.items():
            if tensor.numel() != result.numel() or tensor.shape[-1] != result.shape[-1] or tensor.dtype != result.dtype:
                continue
            if same(tensor, result):
                continue
            found = [(c, k) for c, k in found if not same(c.outputs[k], tensor)]
            found.append((call, key))
    return found


def stacks(trace: Trace, model: nn.Module) -> list[list[Call]]:
    """Lists of modules that are called in a chain, each on what the last one returned: the blocks, outermost first."""
    declared = getattr(model, "_no_split_modules", None) or []
    found: list[list[Call]] = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) == 0:
            continue
        if any(path.startswith(chain[0].path.rsplit(".", 1)[0] + ".") for chain in found):
            continue
        calls = [trace.of(f"{path}.{name}") for name, _ in module.named_children()]
        if any(len(c) != 1 for c in calls):
            continue
        chain = [c[0] for c in calls]
        attends = any(event.path.startswith(path + ".") for event in trace.events if event.kind != "product")
        if not attends and not any(type(call.module).__name__ in declared for call in chain):
            continue
        if all(_links(a, b) for a, b in itertools.pairwise(chain)) and stream_key(chain[0]) is not None:
            found.append(chain)
    return sorted(found, key=lambda chain: chain[0].start)


def _links(a: Call, b: Call) -> bool:
    return any(same(out, into) for out in a.outputs.values() for into in b.inputs.values() if out.is_floating_point())


def stream_key(block: Call) -> tuple[int | str, int | str | None] | None:
    """Which argument and which item of the output are the residual stream: the first pair of one float shape."""
    for into, x in block.inputs.items():
        if not x.is_floating_point() or x.ndim < 2:
            continue
        for out, y in block.outputs.items():
            if y.shape == x.shape and y.is_floating_point():
                return into, out
    return None


def ancestor(paths: list[str]) -> str:
    """The deepest module that holds all of `paths`."""
    parts = [path.split(".") for path in paths]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
