"""The blocks of a model one at a time, on streams of the caller's making: every number is made by the model's modules.

    blocks = Blocks(model, ids, mask)
    blocks.start                                        # what each embedding writes [sender, prompt, pos, d_model]
    blocks.inputs(3, streams)                           # queries, keys and values that layer 3 makes of several streams
    blocks.block(3, stream, heads=..., middle=...)      # layer 3 with these queries, keys, values and MLP input
    blocks.logits(stream, answers)                      # what the last norm and the unembedding make of a stream

A block is called with the arguments that the model itself would call it with (masks, rotary tables, ...), which are
noted in a forward pass; where several streams are run side by side, in one of as many prompts whose blocks are skipped.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.anatomy.views import NormScale
from patchclamp.circuits.graph import GraphError, embeddings
from patchclamp.interventions import Intervention, edit
from patchclamp.model import Model
from patchclamp.patching.detours import hooked, returning
from patchclamp.patching.direct import norm_gain
from patchclamp.positions import Frame
from patchclamp.recording import Keep
from patchclamp.runtime import Session
from patchclamp.sites import Site

Stream = Float[Tensor, "prompt pos d_model"]
Middle = Callable[["Written"], Stream]
_NEAR = 1e-3


class _Enough(BaseException):
    """Ends a pass that has gone far enough. A BaseException, so that no model's `except` swallows it."""


@dataclass(frozen=True)
class Written:
    """What one block has written so far: each head's share of `mixed`, which attention adds, and the MLP's output."""

    heads: Float[Tensor, "head prompt pos d_model"] | None
    mixed: Stream | None
    mlp: Stream | None = None


class Blocks:
    """One batch of prompts, right padded; see the file's first lines. Gradients flow through everything."""

    def __init__(self, model: Model, ids: Int[Tensor, "prompt pos"], mask: Bool[Tensor, "prompt pos"]):
        self.model, self.ids, self.mask = model, ids.to(model.device), mask.to(model.device)
        self.layers = model.anatomy.layers[""]
        self.masked = not model.certificate.causal and not bool(mask.all())  # no real token looks at right padding
        self._noted: dict[int, list[tuple[tuple, dict]]] = {}
        self._beside: list[Any] = [None] * len(self.layers)  # what a block returns beside the stream
        self._norms: dict[int, tuple[Tensor, float] | None] = {}
        self._start()

    def _start(self) -> None:
        """One pass of the whole model: the arguments of its blocks, and what its stream begins with."""
        calls: list[tuple[tuple, dict]] = []
        first, senders = Site("resid_pre", 0), embeddings(self.model)
        attends = [
            i for i in range(len(self.layers)) if {Site("z", i), Site("attn_out", i)} <= self.model.anatomy.taps.keys()
        ]
        both = [Site(kind, layer) for kind in ("z", "attn_out") for layer in attends]
        session = self._session(1, [first, *senders, *both], ())
        with torch.no_grad(), ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                block = self.model.hf.get_submodule(layer.path)
                stack.enter_context(hooked(block, before=self._noting(calls), after=self._noting_rest(index)))
            stack.enter_context(session)
            stack.enter_context(self._before_unembedding())
            self._forward(1)
        self._noted[1] = [self._without_stream(index, *call) for index, call in enumerate(calls)]
        recorded = session.recording()
        begun = recorded[first]
        self.start: Float[Tensor, "sender prompt pos d_model"] = torch.stack(
            [recorded[site].expand_as(begun) for site in senders]
        )
        self.rest: Stream = begun - self.start.sum(0)
        with torch.no_grad():
            for layer in attends:
                summed = self._summed(layer, self._projected(layer, recorded[Site("z", layer)]))
                self._norms[layer] = self._post_norm(layer, summed, recorded[Site("attn_out", layer)])

    # ── one block ─────────────────────────────────────────────────────────────────────────────────────────────────

    def inputs(
        self, layer: int, streams: Float[Tensor, "stream prompt pos d_model"]
    ) -> dict[str, Float[Tensor, "stream prompt pos head d_head"]]:
        """The queries, keys and values that a layer makes of each stream; nothing behind them is computed."""
        seen: dict[str, Tensor] = {}

        def note(kind: str) -> Callable[[Tensor], Tensor]:
            def take(x: Tensor) -> Tensor:
                seen[kind] = x.unflatten(0, (len(streams), -1))
                if len(seen) == 3:
                    raise _Enough
                return x

            return take

        self._call(layer, streams.flatten(0, 1), (), [edit(Site(kind, layer), note(kind)) for kind in "qkv"])
        return seen

    def mlp_input(
        self, layer: int, streams: Float[Tensor, "stream prompt pos d_model"]
    ) -> Float[Tensor, "stream prompt pos d_model"]:
        """What the MLP of a layer is given where the stream in front of its norm is one of these."""
        seen: list[Tensor] = []

        def take(x: Tensor) -> Tensor:
            seen.append(x)
            raise _Enough

        do = [edit(Site("mlp_in", layer), take)]
        flat = streams.flatten(0, 1)
        if self.layers[layer].sequential:
            do.append(edit(Site("resid_mid", layer), lambda x: flat))
        self._call(layer, flat, (), do)
        return seen[0].unflatten(0, (len(streams), -1))

    def scores(
        self, layer: int, stream: Stream, heads: dict[str, Float[Tensor, "copy prompt pos head d_head"]]
    ) -> Float[Tensor, "copy prompt head query key"]:
        """The scores of attention, before softmax, with these queries, keys or values in place of the stream's own."""
        copies = len(next(iter(heads.values())))
        seen: list[Tensor] = []

        def take(x: Tensor) -> Tensor:
            seen.append(x)
            raise _Enough

        do = [edit(Site(kind, layer), _given(value.flatten(0, 1))) for kind, value in heads.items()]
        self._call(layer, stream.repeat(copies, 1, 1), (), [*do, edit(Site("scores", layer), take)])
        return seen[0].unflatten(0, (copies, -1))

    def block(
        self,
        layer: int,
        stream: Stream,
        *,
        heads: dict[str, Float[Tensor, "prompt pos head d_head"]] | None = None,
        middle: Middle | None = None,
        pattern: Callable[[Tensor], Tensor] | None = None,
    ) -> Written:
        """A layer on a stream, with `heads` for what attention consumes and `middle(written)` for the stream that the
        MLP reads once attention has written (where the MLP comes behind it). `pattern` may edit the attention pattern.
        """
        kinds = [kind for kind in ("z", "attn_out", "mlp_out") if Site(kind, layer) in self.model.anatomy.taps]
        do = [edit(Site(kind, layer), _given(value)) for kind, value in (heads or {}).items()]
        made: list[Written] = []

        def read(x: Tensor) -> Tensor:
            made.append(self._attended(layer, session))
            assert middle is not None
            return middle(made[0])

        if middle is not None:
            do.append(edit(Site("resid_mid", layer), read))
        if pattern is not None:
            do.append(edit(Site("pattern", layer), pattern))
        session = self._session(len(stream) // len(self.ids), [Site(kind, layer) for kind in kinds], do)
        self._call(layer, stream, kinds, do, session)
        written = made[0] if made else self._attended(layer, session)
        mlp = session.tapes[Site("mlp_out", layer)].done() if "mlp_out" in kinds else None
        return Written(written.heads, written.mixed, mlp)

    def _attended(self, layer: int, session: Session) -> Written:
        site, out = Site("z", layer), Site("attn_out", layer)
        mixed = session.tapes[out].done() if out in session.tapes else None
        if site not in session.tapes or mixed is None:
            return Written(None, mixed)
        heads = self._projected(layer, session.tapes[site].done())
        return Written(heads * self._passed(layer, heads), mixed)

    def _projected(self, layer: int, z: Float[Tensor, "prompt pos head d_head"]) -> Tensor:
        return torch.einsum("bthd,hdm->hbtm", z, self.model.weights.W_O[layer].to(z.dtype))

    def _summed(self, layer: int, heads: Tensor) -> Stream:
        return heads.sum(0) + self.model.weights.b_O[layer].to(heads.dtype)

    def _passed(self, layer: int, heads: Tensor) -> Tensor | float:
        """What multiplies a head's output on its way to the stream: a constant, or a post-norm's gain / scale."""
        factor, norm = self.layers[layer].factors[0], self._norms[layer]
        if norm is None:
            return factor
        gain, eps = norm
        return gain * factor / (self._summed(layer, heads).square().mean(-1, keepdim=True) + eps).sqrt()

    def _post_norm(self, layer: int, summed: Stream, mixed: Stream) -> tuple[Tensor, float] | None:
        """Gain and eps of the norm between heads and stream, None where there is none."""
        factor = self.layers[layer].factors[0]
        if _near(summed * factor, mixed):
            return None
        norm = self.model.hf.get_submodule(self.model.anatomy.taps[Site("attn_out", layer)].path)
        names = ("eps", "variance_epsilon")
        eps = next((getattr(norm, name) for name in names if isinstance(getattr(norm, name, None), float)), None)
        if eps is not None:
            gain, _ = norm_gain(norm, NormScale(False, eps), summed.shape[-1], summed.device, self.model.dtype)
            gain = gain.to(summed.dtype)
            if _near(summed * gain * factor / (summed.square().mean(-1, keepdim=True) + eps).sqrt(), mixed):
                return gain, eps
        raise GraphError(f"what attention adds in block {layer} of {self.model.name} is no sum of what its heads write")

    # ── the end of the stream ─────────────────────────────────────────────────────────────────────────────────────

    def logits(
        self, streams: Float[Tensor, "row pos d_model"], answers: Int[Tensor, "prompt"]
    ) -> Float[Tensor, "row vocab"]:
        """The logits at the answers from streams behind the last block; rows are the prompts, any number of times."""
        copies = len(streams) // len(self.ids)
        columns = answers.to(self.model.device).repeat(copies)
        rows = torch.arange(len(streams), device=streams.device)

        def at_answers(args: tuple, kwargs: dict):
            return (args[0][rows, columns][:, None], *args[1:]), kwargs

        path = self.model.anatomy.unembed
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                block = self.model.hf.get_submodule(layer.path)
                stack.enter_context(returning(block, lambda index=index: self._shaped(index, streams)))
            if path is not None:
                stack.enter_context(hooked(self.model.hf.get_submodule(path), before=at_answers))
            logits = self._forward(copies).logits
        return logits[:, 0] if logits.shape[1] == 1 else logits[rows, columns]

    # ── calling modules ───────────────────────────────────────────────────────────────────────────────────────────

    def _session(self, copies: int, sites: Sequence[Site], do: Sequence[Intervention]) -> Session:
        frames = {"": Frame.of_mask(self.mask.repeat(copies, 1))}
        return Session(self.model.hf, self.model.anatomy, [Keep(site) for site in sites], do, frames=frames)

    def _call(self, layer: int, stream: Tensor, kinds: Sequence[str], do: list, session: Session | None = None) -> None:
        copies = len(stream) // len(self.ids)
        args, kwargs = self._arguments(copies)[layer]
        into = self.layers[layer].into
        if isinstance(into, int):
            args = (*args[:into], stream, *args[into + 1 :])
        else:
            kwargs = {**kwargs, into: stream}
        session = session or self._session(copies, (), do)
        with session, suppress(_Enough):
            self.model.hf.get_submodule(self.layers[layer].path)(*args, **kwargs)

    def _arguments(self, copies: int) -> list[tuple[tuple, dict]]:
        """What each block is called with when there are `copies` of the prompts, the stream left out."""
        if copies not in self._noted:
            calls: list[tuple[tuple, dict]] = []
            empty = self.start.new_zeros(copies * len(self.ids), *self.start.shape[2:])
            with torch.no_grad(), ExitStack() as stack:
                for index, layer in enumerate(self.layers):
                    block = self.model.hf.get_submodule(layer.path)
                    stack.enter_context(hooked(block, before=self._noting(calls)))
                    if not _tensors(self._beside):  # else a block reads what the one before it returned beside it
                        stack.enter_context(returning(block, lambda index=index: self._shaped(index, empty)))
                stack.enter_context(self._before_unembedding())
                self._forward(copies)
            self._noted[copies] = [self._without_stream(index, *call) for index, call in enumerate(calls)]
        return self._noted[copies]

    def _forward(self, copies: int) -> Any:
        arguments: dict[str, Any] = {"input_ids": self.ids.repeat(copies, 1)}
        if self.masked:
            arguments["attention_mask"] = self.mask.repeat(copies, 1).long()
        if self.model._accepts("use_cache"):
            arguments["use_cache"] = False
        try:
            return self.model.hf(**arguments)
        except _Enough:
            return None

    def _before_unembedding(self):
        """The pass ends in front of the unembedding."""

        def stop(args: tuple, kwargs: dict) -> None:
            raise _Enough

        path = self.model.anatomy.unembed
        return hooked(self.model.hf.get_submodule(path), before=stop) if path is not None else ExitStack()

    def _noting(self, calls: list) -> Callable:
        return lambda args, kwargs: calls.append((args, kwargs))

    def _noting_rest(self, index: int) -> Callable:
        key = self.layers[index].out

        def note(args: tuple, kwargs: dict, output: Any) -> None:
            self._beside[index] = None if key is None else [None if i == key else x for i, x in enumerate(output)]

        return note

    def _without_stream(self, index: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        into = self.layers[index].into
        if isinstance(into, int):
            return (*args[:into], None, *args[into + 1 :]), kwargs
        return args, {**kwargs, into: None}

    def _shaped(self, index: int, stream: Tensor) -> Any:
        rest, key = self._beside[index], self.layers[index].out
        return stream if rest is None else tuple(stream if i == key else x for i, x in enumerate(rest))


def _given(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: value


def _near(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= _NEAR * max(float(b.abs().max()), 1e-6)


def _tensors(value: Any) -> bool:
    """Whether there is a tensor anywhere in nested lists."""
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_tensors, value)))
