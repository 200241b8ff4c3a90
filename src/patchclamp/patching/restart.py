"""Runs that begin where a patch begins; what it cannot reach is not computed.

    restart = Restart(model, corrupt, clean, mask, answers, sites=[Site("z", 1)])
    restart.run(1, copies=4, site=Site("z", 1), write=write)      # logits at the answers [prompt, copy, vocab]

A patch of layer L at position p leaves alone every block below L, and in a causal model every position before p. So the
blocks below are passed through, the keys and values of earlier positions come from a cache, block L is given the
residual stream of the base run, and only the answer positions are unembedded. What remains is computed by the model's
own modules on the same numbers: the result is that of the whole forward pass.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.anatomy.structure import ancestor
from patchclamp.anatomy.views import projection
from patchclamp.interventions import Intervention, edit
from patchclamp.model import Model
from patchclamp.patching.detours import at_answers, hooked, returning
from patchclamp.patching.prefix import croppable, cropped, refusal
from patchclamp.recording import Keep
from patchclamp.runtime import Session
from patchclamp.sites import Site

_BEFORE_Z = frozenset({"resid_pre", "ln1_scale", "attn_in", "q", "k", "v", "scores", "pattern"})
_BEFORE_MLP = _BEFORE_Z | {"z"}
_EMBEDDINGS = (Site("embed"), Site("pos_embed"))


class _Reached(BaseException):
    """Ends a forward pass before the unembedding, with what it would have read."""

    def __init__(self, final: Tensor):
        self.final = final


@dataclass(frozen=True)
class _Attention:
    """An attention module that returns what its out-projection returned, as item `key` of `size` (None: alone)."""

    path: str
    out_proj: str
    key: int | None
    size: int


class Restart:
    """A base run that can be taken up again at any block, from any position, many times side by side.

    `base` and `source` [prompt, pos] are right-padded ids and run in one batch; `answers` [prompt] are the positions
    whose logits are wanted; `base_do` and `source_do` hold in those runs themselves (a corruption of the embeddings,
    given as a tensor). `sites` are the whole sites that will be written. `before[site]` and `source[site]` are their
    values [prompt, ...] in the two runs, `logits` and `source_logits` what those runs answer.
    """

    def __init__(
        self,
        model: Model,
        base: Int[Tensor, "prompt pos"],
        source: Int[Tensor, "prompt pos"],
        mask: Bool[Tensor, "prompt pos"],
        answers: Int[Tensor, "prompt"],
        *,
        base_do: Sequence[Intervention] = (),
        source_do: Sequence[Intervention] = (),
        sites: Sequence[Site] = (),
    ):
        self.model, self.causal = model, model.certificate.causal
        self.ids, self.mask = base.to(model.device), mask.to(model.device)
        self.answers = answers.to(model.device)
        self.layers = model.anatomy.layers[""]
        self.end = int(answers.max()) + 1 if self.causal else base.shape[1]
        self._rest: dict[str, Any] = {}  # what a block returns beside the stream, by path
        self._attention: dict[int, _Attention] = {}
        self._caches: dict[int, Any] = {}
        self._named: tuple[Tensor, Tensor] | None = None  # the unembedding of the only tokens that are asked for
        self._final = torch.empty(0)
        self.closed = True
        n, last = len(base), len(self.layers) - 1
        keeps = [Site("resid_pre", i) for i in range(last + 1)] + list(sites)
        if any(site in _EMBEDDINGS for site in sites):  # one is changed and the other is held at the base run's
            keeps += [site for site in _EMBEDDINGS if site in model.anatomy.taps]
        do = [*_in_rows(base_do, range(n)), *_in_rows(source_do, range(n, 2 * n))]
        session = Session(model.hf, model.anatomy, [Keep(site) for site in dict.fromkeys(keeps)], do)
        ids = torch.cat([self.ids, source.to(model.device)])[:, : self.end]
        columns = self.answers.repeat(2)
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self._unembedding(columns))
            for layer in self.layers:
                stack.enter_context(self._noting_block(layer.path, layer.into, layer.out, n))
            for site in sites:
                if site.kind == "z" and not site.stack:
                    stack.enter_context(self._noting_attention(site.layer or 0))
            stack.enter_context(self._last_block_at(columns, [site for site in sites if site.layer == last]))
            stack.enter_context(session)
            output = model.hf(input_ids=ids, **self._mask_argument(self.mask.repeat(2, 1)), **self._use_cache(True))
        recording = session.recording()
        self.before: dict[Site, Tensor] = {site: recording[site][:n] for site in recording}
        self.source: dict[Site, Tensor] = {site: recording[site][n:] for site in recording}
        logits = self._at_answers(output.logits, columns)
        self.logits: Float[Tensor, "prompt vocab"] = logits[:n]
        self.source_logits: Float[Tensor, "prompt vocab"] = logits[n:]
        self._whole: Any = getattr(output, "past_key_values", None)
        self.whole_because = self._refusal()

    @property
    def cacheable(self) -> bool:
        """Whether runs can begin in the middle of the prompts; if not, `whole_because` says why."""
        return self.whole_because is None

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
        expected = torch.cat([self.logits, self.source_logits])[:, tokens]
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
        fed = self._copied(Site("resid_pre", layer) if layer < len(self.layers) else self._end_of_stream, copies, start)
        if site is None and write is not None:
            fed = write(fed, start)
        columns = (self.answers - start).repeat_interleave(copies)
        last = len(self.layers) - 1
        inside = [] if site is None or site.layer != last else [site]  # what must not be cut to the answers
        arguments: dict[str, Any] = {"input_ids": self.ids[:, start : self.end].repeat_interleave(copies, 0)}
        arguments |= self._mask_argument(self.mask.repeat_interleave(copies, 0)) | self._use_cache(start > 0)
        if start > 0:
            arguments["past_key_values"] = self._past(start, copies, layer)
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self._unembedding(columns))
            if site not in _EMBEDDINGS:
                stack.enter_context(self._passing_through(layer, fed))
            if site is not None and write is not None:
                if site in _EMBEDDINGS:
                    do = self._embedded(site, write, copies, start)
                    stack.enter_context(Session(self.model.hf, self.model.anatomy, (), do))
                elif site.kind == "z" and layer in self._attention:
                    new = write(self._copied(site, copies, start), start).flatten(-2)
                    stack.enter_context(self._attention_from(self._attention[layer], new))
                    inside = []
                else:
                    stack.enter_context(Session(self.model.hf, self.model.anatomy, (), [_writing(site, write)]))
            stack.enter_context(self._last_block_at(columns, inside))
            try:
                output = self.model.hf(**arguments)
            except _Reached as reached:
                assert self._named is not None
                return (reached.final @ self._named[0] + self._named[1]).unflatten(0, (-1, copies))
        return self._at_answers(output.logits, columns).unflatten(0, (-1, copies))

    def _embedded(self, site: Site, write: Callable[..., Tensor], copies: int, start: int) -> list[Intervention]:
        """The base run's embeddings, with `write` done to one of them."""
        held = {at: self._copied(at, copies, start) for at in _EMBEDDINGS if at in self.before}
        held[site] = write(held[site], start)
        return [_writing(at, lambda x, start, at=at: held[at]) for at in held]

    # ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _end_of_stream(self) -> Site:
        return Site("resid_post", len(self.layers) - 1)

    def _copied(self, site: Site, copies: int, start: int) -> Tensor:
        return self.before[site][:, start : self.end].repeat_interleave(copies, 0)

    def _mask_argument(self, mask: Bool[Tensor, "row pos"]) -> dict[str, Tensor]:
        """Right padding needs no mask in a causal model: no real token looks at what comes after it."""
        if self.causal or bool(mask.all()):
            return {}
        return {"attention_mask": mask.long()}

    def _use_cache(self, use: bool) -> dict[str, bool]:
        return {"use_cache": use and self.causal} if "use_cache" in self.model._parameters else {}

    def _refusal(self) -> str | None:
        if not self.causal:
            return "earlier positions read later ones"
        if not {"past_key_values", "use_cache"} <= self.model._parameters.keys():
            return f"{type(self.model.hf).__name__}.forward takes no past_key_values"
        return refusal(self._whole)

    def _past(self, start: int, copies: int, layer: int) -> Any:
        """Keys and values of the columns before `start`, in the base run."""
        if croppable(self._whole):
            return cropped(self._whole, rows=len(self.ids), start=start, copies=copies, layer=layer)
        if start not in self._caches:
            fed = self.before[Site("resid_pre", 0)][:, :start]
            with torch.no_grad(), self._passing_through(0, fed), self._unembedding(None):
                output = self.model.hf(input_ids=self.ids[:, :start], use_cache=True)
            self._caches[start] = output.past_key_values
        past = copy.deepcopy(self._caches[start])
        past.batch_repeat_interleave(copies)
        return past

    def _at_answers(self, logits: Tensor, columns: Tensor) -> Tensor:
        return logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(logits)), columns]

    # ── what is left out ──────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _unembedding(self, columns: Tensor | None) -> Iterator[None]:
        """Only these columns are unembedded (None: nothing is)."""

        def gather(args: tuple, kwargs: dict):
            if columns is None:
                return (args[0][:, :0], *args[1:]), kwargs
            self._final = args[0][torch.arange(len(columns), device=columns.device), columns]
            if self._named is not None:
                raise _Reached(self._final)
            return (self._final[:, None], *args[1:]), kwargs

        path = self.model.anatomy.unembed
        if path is None:
            yield
            return
        with hooked(self.model.hf.get_submodule(path), before=gather):
            yield

    @contextmanager
    def _last_block_at(self, columns: Tensor, inside: Sequence[Site]) -> Iterator[None]:
        """In the last block only the answers pass the out-projection and the MLP: nothing reads the others any more.

        Unless one of the sites `inside` that block is read or written there or further on.
        """
        last, kinds = self.layers[-1], {site.kind for site in inside}
        mlp = "" if last.up is None or last.down is None else ancestor([last.up, last.down])
        with ExitStack() as stack:
            if mlp not in ("", last.path) and last.sequential and not last.post_norm:
                if kinds <= _BEFORE_MLP:
                    stack.enter_context(at_answers(self.model.hf.get_submodule(mlp), columns))
                if kinds <= _BEFORE_Z and last.out_proj is not None:
                    stack.enter_context(at_answers(self.model.hf.get_submodule(last.out_proj), columns))
            yield

    @contextmanager
    def _passing_through(self, layer: int, fed: Tensor) -> Iterator[None]:
        """Blocks below `layer` return what the last of them must return; block 0 is given it where none is below."""
        hf = self.model.hf
        with ExitStack() as stack:
            if layer == 0:
                into = self.layers[0].into

                def give(args: tuple, kwargs: dict):
                    if isinstance(into, int):
                        return (*args[:into], fed, *args[into + 1 :]), kwargs
                    return args, {**kwargs, into: fed}

                stack.enter_context(hooked(hf.get_submodule(self.layers[0].path), before=give))
            for below in self.layers[:layer]:
                rest, key = self._rest[below.path], below.out
                output = fed if rest is None else tuple(fed if i == key else x for i, x in enumerate(rest))
                stack.enter_context(returning(hf.get_submodule(below.path), lambda output=output: output))
            yield

    @contextmanager
    def _attention_from(self, attention: _Attention, z: Float[Tensor, "row pos width"]) -> Iterator[None]:
        """Attention is not computed: its out-projection is given `z`, which is the base run's with a patch in it."""
        project = self.model.hf.get_submodule(attention.out_proj)

        def output() -> Any:
            made = project(z)
            return (
                made
                if attention.key is None
                else tuple(made if i == attention.key else None for i in range(attention.size))
            )

        with returning(self.model.hf.get_submodule(attention.path), output):
            yield

    # ── what the first run says about the model ───────────────────────────────────────────────────────────────────

    def _noting_block(self, path: str, into: int | str, out: int | str | None, prompts: int):
        """What the block returns beside the stream, and whether both runs give it the same beside the stream."""

        def note(args: tuple, kwargs: dict, output: Any) -> None:
            self._rest[path] = None if out is None else [None if i == out else x for i, x in enumerate(output)]
            beside = [x for i, x in enumerate(args) if i != into] + [x for key, x in kwargs.items() if key != into]
            for x in _tensors(beside):
                if x.ndim and len(x) == 2 * prompts and not torch.equal(x[:prompts], x[prompts:]):
                    self.closed = False

        return hooked(self.model.hf.get_submodule(path), after=note)

    @contextmanager
    def _noting_attention(self, index: int) -> Iterator[None]:
        """Whether the attention module returns exactly what its out-projection made of z, and nothing else."""
        layer = self.layers[index]
        path = "" if layer.recipe is None or not layer.out_proj else ancestor([layer.recipe.path, layer.out_proj])
        if not path or layer.out_proj is None or layer.path.startswith(path) or path == layer.out_proj:
            yield
            return
        out_proj, made = layer.out_proj, []

        def keep(args: tuple, kwargs: dict, output: Any) -> None:
            made[:] = [output] if isinstance(output, Tensor) and len(args) == 1 and not kwargs else []

        def note(args: tuple, kwargs: dict, output: Any) -> None:
            items = [output] if isinstance(output, Tensor) else list(output) if isinstance(output, tuple) else []
            held = [i for i, item in enumerate(items) if item is not None]
            item = items[held[0]] if len(held) == 1 else None
            if made and isinstance(item, Tensor) and item.ndim == 3 and torch.equal(item, made[0]):
                key = None if isinstance(output, Tensor) else held[0]
                self._attention[index] = _Attention(path, out_proj, key, len(items))

        hf = self.model.hf
        with hooked(hf.get_submodule(out_proj), after=keep), hooked(hf.get_submodule(path), after=note):
            yield


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _in_rows(do: Sequence[Intervention], rows: range) -> list[Intervention]:
    """The same interventions on half of a batch of twice the prompts."""
    found = []
    for item in do:
        assert item.value is not None, "corruptions are given as tensors"
        found.append(replace(item, rows=tuple(rows), value=torch.cat([item.value, item.value])))
    return found


def _writing(site: Site, write: Callable[..., Tensor]) -> Intervention:
    def fn(x: Tensor, start: int) -> Tensor:
        return write(x.movedim(site.pos_axis, 1), start).movedim(1, site.pos_axis)

    return edit(site, fn)
