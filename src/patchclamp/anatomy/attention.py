"""Queries, keys, values, scores and patterns, seen and edited inside a module that is not touched.

While a watched attention module runs, a `TorchFunctionMode` looks at the torch functions it calls. Fused attention
(`scaled_dot_product_attention`) receives q, k, v and the mask, so the scores and the pattern can be computed exactly
as PyTorch defines them; eager attention computes them itself, and they are read where it does. Layers that are not
watched run as always, and no configuration changes. Modes are a stack of the thread, so that two threads may run two
experiments on one model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from patchclamp.anatomy.trace import PRODUCT, SDPA, SOFTMAX, Event, product_operands

PARTS = ("q", "k", "v", "scores", "pattern")


@dataclass(frozen=True)
class Recipe:
    """How one attention module computes: fused or eager, with which of its products, for how many heads."""

    path: str
    fused: bool
    heads: int
    kv_heads: int
    d_head: int
    d_value: int
    product: int = 0  # ordinal of the product that makes the scores
    softmax: int = 0
    weighted: int = 1  # ordinal of the product with the values
    cross: bool = False
    sink: bool = False

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


Visit = Callable[[str, Tensor], Tensor]


class Watch(TorchFunctionMode):
    """Shows q, k, v, scores and pattern of one call to `visit(part, tensor) -> tensor`, in canonical shapes.

    `parts` are those wanted. q is [prompt, pos, head, d_head]; k and v are [prompt, key, kv_head, d_head];
    scores and pattern are [prompt, head, query, key]. What `visit` returns is what attention goes on with.
    """

    def __init__(self, recipe: Recipe, parts: frozenset[str], visit: Visit, batch: int):
        super().__init__()
        self.recipe, self.parts, self.visit, self.batch = recipe, parts, visit, batch
        self.counts: dict[str, int] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in SDPA and self.recipe.fused:
            return self._fused(func, args, kwargs)
        if not self.recipe.fused and func in PRODUCT:
            ordinal = self._count("product")
            if ordinal == self.recipe.product:
                return self._scores_product(func, args, kwargs)
            if ordinal == self.recipe.weighted:
                return self._values_product(func, args, kwargs)
        if not self.recipe.fused and func in SOFTMAX and self._count("softmax") == self.recipe.softmax:
            return self._softmax(func, args, kwargs)
        return func(*args, **kwargs)

    def _count(self, kind: str) -> int:
        ordinal = self.counts.get(kind, 0)
        self.counts[kind] = ordinal + 1
        return ordinal

    # ── shapes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _show_query(self, q: Tensor) -> Tensor:
        """[b, head, pos, d], [b * head, pos, d] or, packed for decoding, [b, kv_head, group, d]."""
        if "q" not in self.parts:
            return q
        canonical = q.reshape(self.batch, self.recipe.heads, -1, q.shape[-1]).transpose(1, 2)
        new = self.visit("q", canonical)
        return q if new is canonical else new.transpose(1, 2).reshape(q.shape)

    def _show_keys(self, part: str, k: Tensor) -> Tensor:
        """[b, head or kv_head, key, d] or [b * head, key, d]; repeated heads are shown once."""
        if part not in self.parts:
            return k
        full = k.reshape(self.batch, -1, *k.shape[-2:])
        repeats = full.shape[1] // self.recipe.kv_heads
        canonical = full[:, ::repeats].transpose(1, 2)
        new = self.visit(part, canonical)
        if new is canonical:
            return k
        return new.transpose(1, 2).repeat_interleave(repeats, dim=1).reshape(k.shape)

    def _show_square(self, part: str, x: Tensor, keys: int) -> Tensor:
        """[b, head, query, key (+ sink)], or with heads folded into the batch, or packed."""
        if part not in self.parts:
            return x
        canonical = x[..., :keys].reshape(self.batch, self.recipe.heads, -1, keys)
        new = self.visit(part, canonical)
        if new is canonical:
            return x
        new = new.reshape(*x.shape[:-1], keys).to(x.dtype)
        return new if x.shape[-1] == keys else torch.cat([new, x[..., keys:]], dim=-1)

    # ── fused attention ───────────────────────────────────────────────────────────────────────────────────────────

    def _fused(self, func, args: tuple, kwargs: dict) -> Tensor:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        q = self._show_query(given["query"])
        k = self._show_keys("k", given["key"])
        v = self._show_keys("v", given["value"])
        if not self.parts & {"scores", "pattern"}:
            return func(**{**given, "query": q, "key": k, "value": v})
        if given.get("dropout_p"):
            raise RuntimeError("scores and patterns cannot be watched while attention dropout is on: use model.eval()")
        scale = given.get("scale")
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        repeats = q.shape[1] // k.shape[1]
        wide_k, wide_v = (x if repeats == 1 else x.repeat_interleave(repeats, dim=1) for x in (k, v))
        exact = torch.promote_types(q.dtype, torch.float32)  # as the fused kernels accumulate
        scores = q.to(exact) @ wide_k.to(exact).transpose(-2, -1) * scale
        mask = given.get("attn_mask")
        if given.get("is_causal"):
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        scores = self._show_square("scores", scores, scores.shape[-1])
        pattern = scores.softmax(-1)
        empty = (scores == -math.inf).all(-1, keepdim=True)  # a row of padding, which attends to nothing
        pattern = pattern.masked_fill(empty, 0.0).to(q.dtype)
        pattern = self._show_square("pattern", pattern, pattern.shape[-1])
        return pattern @ wide_v

    # ── eager attention ───────────────────────────────────────────────────────────────────────────────────────────

    def _scores_product(self, func, args: tuple, kwargs: dict) -> Tensor:
        q, k = product_operands(func, args, kwargs)
        new_q = self._show_query(q)
        new_k = self._show_keys("k", k.transpose(-2, -1)).transpose(-2, -1) if "k" in self.parts else k
        self.keys = k.shape[-1]
        return _with_operands(func, args, kwargs, new_q, new_k)

    def _softmax(self, func, args: tuple, kwargs: dict) -> Tensor:
        x = kwargs.pop("input") if "input" in kwargs else args[0]
        return func(self._show_square("scores", x, self.keys), *args[1:], **kwargs)

    def _values_product(self, func, args: tuple, kwargs: dict) -> Tensor:
        pattern, v = product_operands(func, args, kwargs)
        new_pattern = self._show_square("pattern", pattern, pattern.shape[-1])
        return _with_operands(func, args, kwargs, new_pattern, self._show_keys("v", v))


def _with_operands(func, args: tuple, kwargs: dict, left: Tensor, right: Tensor) -> Tensor:
    if func in (torch.baddbmm, Tensor.baddbmm):
        rest = {key: value for key, value in kwargs.items() if key not in ("batch1", "batch2", "input")}
        return func(kwargs.get("input", args[0] if args else None), left, right, **rest)
    return func(left, right)


def recipe(path: str, events: list[Event], *, batch: int, cross: bool = False) -> Recipe | None:
    """How the module at `path` attends, from the events of one call of it; None where it does not."""
    fused = next((e for e in events if e.kind == "sdpa"), None)
    if fused is not None:
        q, k, v = fused.operands
        kv_heads = _distinct_heads(k.reshape(batch, -1, *k.shape[-2:]), v.reshape(batch, -1, *v.shape[-2:]))
        heads = q.reshape(batch, -1, *q.shape[-2:]).shape[1]
        return Recipe(path, True, heads, kv_heads, q.shape[-1], v.shape[-1], cross=cross)
    softmax = next((e for e in events if e.kind == "softmax" and e.operands[0].ndim >= 3), None)
    if softmax is None:
        return None
    scores = softmax.result.shape
    before = [e for e in events if e.kind == "product" and e.time < softmax.time]
    after = [e for e in events if e.kind == "product" and e.time > softmax.time]
    product = next((e for e in reversed(before) if e.result.shape[-2] == scores[-2]), None)
    weighted = next((e for e in after if e.operands[0].shape[-2] == scores[-2]), None)
    if product is None or weighted is None:
        return None
    q, k = product.operands
    v = weighted.operands[1]
    heads = q.reshape(batch, -1, *q.shape[-2:]).shape[1]
    keys = k.transpose(-2, -1).reshape(batch, -1, k.shape[-1], k.shape[-2])
    kv_heads = _distinct_heads(keys, v.reshape(batch, -1, *v.shape[-2:]))
    return Recipe(
        path,
        False,
        heads,
        kv_heads,
        q.shape[-1],
        v.shape[-1],
        _ordinal(product, events),
        _ordinal(softmax, events),
        _ordinal(weighted, events),
        cross,
        sink=scores[-1] != weighted.operands[0].shape[-1],
    )


def _distinct_heads(k: Tensor, v: Tensor) -> int:
    """Key-value heads before they were repeated for the query heads that share them."""
    heads = k.shape[1]
    for group in range(heads, 1, -1):
        if heads % group == 0 and all(torch.equal(x, x[:, ::group].repeat_interleave(group, dim=1)) for x in (k, v)):
            return heads // group
    return heads


def _ordinal(event: Event, events: list[Event]) -> int:
    return [e.time for e in events if e.kind == event.kind].index(event.time)
