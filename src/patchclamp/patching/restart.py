"""Runs that begin where a patch begins; what it cannot reach is not computed.

A patch of layer L at position p leaves alone every block below L, and in a causal model every position before p. So the
blocks below are passed through, the keys and values of earlier positions come from a cache, block L is given the
residual stream of the base run, and only the answer positions are unembedded. What remains is computed by the model's
own modules on the same numbers: the result is that of the whole forward pass.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchclamp.anatomy.structure import ancestor
from patchclamp.anatomy.views import projection
from patchclamp.interventions import Intervention, edit
from patchclamp.model import Model
from patchclamp.recording import Keep, Recording
from patchclamp.runtime import Session
from patchclamp.sites import Site

_BEFORE_MLP = frozenset({"resid_pre", "ln1_scale", "attn_in", "q", "k", "v", "scores", "pattern", "z"})


class _Reached(BaseException):
    """Ends a forward pass before the unembedding, with what it would have read."""

    def __init__(self, final: Tensor):
        self.final = final


class Restart:
    """A base run that can be taken up again at any block, from any position, many times side by side.

    `ids` [prompt, pos] are right-padded; `answers` [prompt] are the positions whose logits are wanted; `do` holds in
    the base run itself (a corruption of the embeddings).
    """

    def __init__(
        self,
        model: Model,
        ids: Int[Tensor, "prompt pos"],
        mask: Bool[Tensor, "prompt pos"],
        answers: Int[Tensor, "prompt"],
        *,
        do: Sequence[Intervention] = (),
        record: Sequence[Site] = (),
    ):
        self.model, self.do, self.causal = model, list(do), model.certificate.causal
        self.ids, self.mask = ids.to(model.device), mask.to(model.device)
        self.answers = answers.to(model.device)
        self.layers = model.anatomy.layers[""]
        self.end = int(answers.max()) + 1 if self.causal else ids.shape[1]
        self._caches: dict[int, Any] = {}
        self._shapes: dict[str, Any] = {}
        self._named: tuple[Tensor, Tensor] | None = None  # the unembedding of the only tokens that are asked for
        self._final = torch.empty(0)
        streams = [Site("resid_pre", i) for i in range(len(self.layers))] + [Site("resid_post", len(self.layers) - 1)]
        keeps = [Keep(site) for site in dict.fromkeys([*streams, *record])]
        session = Session(model.hf, model.anatomy, keeps, self.do)
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self._answers_only(1, 0))
            for layer in self.layers:
                stack.enter_context(self._note_output(layer.path, layer.out))
            stack.enter_context(session)
            output = model.hf(input_ids=self.ids[:, : self.end], **self._mask_argument(0, 1), use_cache=False)
        self.recording: Recording = session.recording()
        self.logits: Float[Tensor, "prompt vocab"] = self._at_answers(output.logits, 1, 0)

    @cached_property
    def cacheable(self) -> bool:
        """Whether runs can begin in the middle of the prompts."""
        return self.causal and "past_key_values" in self.model._parameters and self._can_cache()

    @property
    def vocab(self) -> int:
        return self.logits.shape[-1] if self._named is None else self._named[0].shape[1]

    def only(self, tokens: Int[Tensor, "token"]) -> bool:
        """From now on `run` gives the logits of these tokens alone, where they are one matrix product away.

        Whether they are is read off the base run: soft-caps and scales make it False, and all logits are computed.
        """
        path = self.model.anatomy.unembed
        if path is None or self._final.numel() == 0:
            return False
        module = self.model.hf.get_submodule(path)
        matrix = projection(module).detach()[:, tokens].contiguous()
        bias = getattr(module, "bias", None)
        offset = matrix.new_zeros(matrix.shape[1]) if bias is None else bias.detach()[tokens]
        expected = self.logits[:, tokens]
        if not torch.allclose(
            self._final @ matrix + offset, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        ):
            return False
        self._named = matrix, offset
        return True

    def run(
        self,
        layer: int,
        copies: int,
        *,
        start: int = 0,
        site: Site | None = None,
        write: Callable[..., Tensor] | None = None,
    ) -> Float[Tensor, "prompt copies vocab"]:
        """Logits at the answers of `copies` runs from block `layer` on, of the columns from `start` on.

        `write(x, start)` edits the site's whole tensor, whose rows are prompts times copies (copies vary fastest) and
        whose positions begin at column `start`. Without `site` it edits what block `layer` reads (the number of layers:
        what the last block returned).
        """
        if not self.cacheable:
            start = 0
        stream = Site("resid_pre", layer) if layer < len(self.layers) else Site("resid_post", layer - 1)
        fed = self.recording[stream][:, start : self.end].repeat_interleave(copies, 0)
        if site is None and write is not None:
            fed = write(fed, start)
        do = [] if site is None or write is None else [_writing(site, write)]
        arguments: dict[str, Any] = {"input_ids": self.ids[:, start : self.end].repeat_interleave(copies, 0)}
        arguments |= self._mask_argument(start, copies) | {"use_cache": False}
        if start > 0:
            cache = copy.deepcopy(self._cache(start))
            cache.batch_repeat_interleave(copies)
            arguments |= {"past_key_values": cache, "use_cache": True}
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self._answers_only(copies, start))
            stack.enter_context(self._passing_through(layer, fed))
            if site is None or (site.layer or 0) < len(self.layers) - 1 or site.kind in _BEFORE_MLP:
                stack.enter_context(self._last_mlp_at_answers(copies, start))
            if do:
                stack.enter_context(Session(self.model.hf, self.model.anatomy, (), do))
            try:
                output = self.model.hf(**arguments)
            except _Reached as reached:
                assert self._named is not None
                return (reached.final @ self._named[0] + self._named[1]).unflatten(0, (-1, copies))
        return self._at_answers(output.logits, copies, start).unflatten(0, (-1, copies))

    # ── what is left out ──────────────────────────────────────────────────────────────────────────────────────────

    def _mask_argument(self, start: int, copies: int) -> dict[str, Tensor]:
        """Right padding needs no mask in a causal model: no real token looks at what comes after it."""
        if self.causal or bool(self.mask.all()):
            return {}
        return {"attention_mask": self.mask.long().repeat_interleave(copies, 0)}

    def _can_cache(self) -> bool:
        """Whether the model returns a cache that can be repeated for several copies of the prompts."""
        if self.ids.shape[1] < 2:
            return False
        try:
            return hasattr(self._cache(1), "batch_repeat_interleave")
        except (TypeError, ValueError, AttributeError, NotImplementedError):
            return False

    def _cache(self, start: int) -> Any:
        """Keys and values of the columns before `start`, in the base run."""
        if start not in self._caches:
            with torch.no_grad(), ExitStack() as stack:
                stack.enter_context(self._without_unembedding())
                if self.do:
                    stack.enter_context(Session(self.model.hf, self.model.anatomy, (), self.do))
                output = self.model.hf(input_ids=self.ids[:, :start], use_cache=True)
            self._caches[start] = output.past_key_values
        return self._caches[start]

    def _at_answers(self, logits: Tensor, copies: int, start: int) -> Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        where = (self.answers - start).repeat_interleave(copies)
        return logits[torch.arange(len(logits), device=logits.device), where]

    @contextmanager
    def _hooked(self, path: str | None, fn: Callable, *, pre: bool = True) -> Iterator[None]:
        if path is None:
            yield
            return
        module, owner = self.model.hf.get_submodule(path), threading.get_ident()

        def before(mod: nn.Module, args: tuple, kwargs: dict):
            return fn(args, kwargs) if threading.get_ident() == owner else None

        def after(mod: nn.Module, args: tuple, kwargs: dict, output: Any):
            return fn(args, output) if threading.get_ident() == owner else None

        handle = (
            module.register_forward_pre_hook(before, with_kwargs=True)
            if pre
            else module.register_forward_hook(after, with_kwargs=True)
        )
        try:
            yield
        finally:
            handle.remove()

    def _answers_only(self, copies: int, start: int):
        where = (self.answers - start).repeat_interleave(copies)

        def gather(args: tuple, kwargs: dict):
            x = args[0]
            self._final = x[torch.arange(len(x), device=x.device), where]
            if self._named is not None:
                raise _Reached(self._final)
            return (self._final[:, None], *args[1:]), kwargs

        return self._hooked(self.model.anatomy.unembed, gather)

    @contextmanager
    def _last_mlp_at_answers(self, copies: int, start: int) -> Iterator[None]:
        """In the last block only the answers' positions go through the MLP: nothing reads the others any more."""
        last = self.layers[-1]
        path = "" if last.up is None or last.down is None else ancestor([last.up, last.down])
        if path in ("", last.path) or not last.sequential or last.post_norm:
            yield
            return
        where = (self.answers - start).repeat_interleave(copies)
        shapes: list[torch.Size] = []

        def gather(args: tuple, kwargs: dict):
            shapes.clear()
            if len(args) != 1 or kwargs or args[0].ndim != 3:
                return None
            shapes.append(args[0].shape)
            return (args[0][torch.arange(len(where), device=where.device), where][:, None],), kwargs

        def scatter(args: tuple, output: Any):
            if not shapes or not isinstance(output, Tensor):
                return None
            whole = output.new_zeros(shapes[0])
            whole[torch.arange(len(where), device=where.device), where] = output[:, 0]
            return whole

        with self._hooked(path, gather), self._hooked(path, scatter, pre=False):
            yield

    def _without_unembedding(self):
        return self._hooked(self.model.anatomy.unembed, lambda args, kwargs: ((args[0][:, :0], *args[1:]), kwargs))

    def _note_output(self, path: str, key: int | str | None):
        """Remember what a block returns beside the stream, to return the same where it is passed through."""

        def note(args: tuple, output: Any) -> None:
            self._shapes[path] = None if key is None else [None if i == key else item for i, item in enumerate(output)]

        return self._hooked(path, note, pre=False)

    @contextmanager
    def _passing_through(self, layer: int, fed: Tensor) -> Iterator[None]:
        """Blocks below `layer` return what the last of them must return; block 0 is given it where none is below."""
        owner = threading.get_ident()
        if layer == 0:
            into = self.layers[0].into

            def give(args: tuple, kwargs: dict):
                if isinstance(into, int):
                    return (*args[:into], fed, *args[into + 1 :]), kwargs
                return args, {**kwargs, into: fed}

            with self._hooked(self.layers[0].path, give):
                yield
            return
        blocks = [self.model.hf.get_submodule(below.path) for below in self.layers[:layer]]
        try:
            for block, below in zip(blocks, self.layers, strict=False):
                own, rest, key = block.forward, self._shapes[below.path], below.out

                def pass_through(*args: Any, _own=own, _rest=rest, _key=key, **kwargs: Any) -> Any:
                    if threading.get_ident() != owner:
                        return _own(*args, **kwargs)
                    return fed if _rest is None else tuple(fed if i == _key else x for i, x in enumerate(_rest))

                block.__dict__["forward"] = pass_through
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)


def _writing(site: Site, write: Callable[..., Tensor]) -> Intervention:
    def fn(x: Tensor, start: int) -> Tensor:
        return write(x.movedim(site.pos_axis, 1), start).movedim(1, site.pos_axis)

    return edit(site, fn)
