"""Hooks for one run: put in, used, and taken out again, whatever happens in between.

A `Session` is the only thing in the package that touches a module. It registers handles, remembers them, and removes
exactly those. It acts in the thread that opened it, so that two threads may run two experiments on one model.
"""

import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.anatomy.attention import Watch
from patchclamp.anatomy.discover import Anatomy, Tap
from patchclamp.anatomy.experts import RouterWatch, combine, neurons, routing
from patchclamp.anatomy.views import Moment
from patchclamp.interventions import Intervention
from patchclamp.positions import Frame
from patchclamp.recording import Keep, Recording, Tape
from patchclamp.sites import ORDER, Site


class NeverFired(RuntimeError):
    """A site was asked for, exists, and yet the forward pass never came by."""


class Stopped(BaseException):
    """Ends a forward pass early; caught by `Model.run` (a BaseException, so that no model's own `except` swallows it)."""


@dataclass
class Stage:
    """All that happens at one whole site."""

    tap: Tap
    do: list[tuple[Intervention, Site]] = field(default_factory=list)
    tapes: list[Tape] = field(default_factory=list)
    fired: int = 0
    consumed: Tensor | None = None  # with grad: the tensor that the model went on with

    @property
    def site(self) -> Site:
        return self.tap.site


_open = threading.local()


def _stack() -> list["Session"]:
    if not hasattr(_open, "sessions"):
        _open.sessions = []
    return _open.sessions


class Session:
    """Records and intervenes while it is open.

    `frame` describes the prompts where they are known beforehand (`run`, `generate`); otherwise it is read off the
    arguments of each forward pass (`under`).
    """

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        keeps: Sequence[Keep],
        do: Sequence[Intervention],
        *,
        frame: Frame | None = None,
        grad: bool = False,
        stop: Site | None = None,
    ):
        self.module, self.anatomy, self.frame, self.grad, self.stop = module, anatomy, frame, grad, stop
        self.modules = dict(module.named_modules())
        self.stages: dict[Site, Stage] = {}
        self.tapes: list[Tape] = []
        self.handles: list[Any] = []
        self.frames: dict[str, Frame] = {}
        self.block_inputs: dict[str, Tensor] = {}
        self.watches: list[Any] = []
        self.forwards = 0
        self.touched: set[int] = set()
        self.do = list(do)
        for item in self.do:
            if not isinstance(item, Intervention):
                raise TypeError(f"do= takes interventions (pc.patch, pc.add, ...), not {type(item).__name__}")
            for site in anatomy.inventory.expand(item.site):
                self._stage(site).do.append((item, site))
        for want in keeps:
            for pattern in want.patterns:
                for site in anatomy.inventory.expand(pattern):
                    tape = Tape(want, site)
                    self.tapes.append(tape)
                    self._stage(site).tapes.append(tape)
        if stop is not None:
            self._stage(stop)

    def _stage(self, site: Site) -> Stage:
        whole = site.whole
        if whole not in self.stages:
            self.stages[whole] = Stage(self._module_tap(whole) if whole.kind == "module" else self.anatomy.taps[whole])
        return self.stages[whole]

    def _module_tap(self, site: Site) -> Tap:
        unknown = not self.anatomy.taps
        return Tap(site, site.path, "output", volatile=unknown or site.path in self.anatomy.volatile)

    # ── hooks in, hooks out ───────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> "Session":
        groups: dict[tuple[str, str], list[Stage]] = defaultdict(list)
        for stage in sorted(self.stages.values(), key=lambda s: ORDER.get(s.site.kind, -1)):
            groups[stage.tap.path, stage.tap.port].append(stage)
        _refuse_compiled(self.module, [path for path, _ in groups])
        try:
            self._hook_pre(self.module, self._begin)
            for (path, port), stages in groups.items():
                self._install(self.modules[path], port, stages)
            for path in {stage.tap.block for stage in self.stages.values() if stage.tap.block}:
                self._hook_pre(self.modules[path], self._note_block_input(path))
        except BaseException:
            self._remove()
            raise
        _stack().append(self)
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self._remove()
        if self in _stack():
            _stack().remove(self)
        if kind is None and self.forwards:
            self._check_fired()

    def _remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        while self.watches:
            self.watches.pop().__exit__(None, None, None)

    def _active(self) -> bool:
        stack = _stack()
        return self in stack or not stack

    def _hook_pre(self, module: nn.Module, fn: Callable) -> None:
        def hook(mod: nn.Module, args: tuple, kwargs: dict):
            return fn(mod, args, kwargs) if self._active() else None

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _hook_post(self, module: nn.Module, fn: Callable, *, always: bool = False) -> None:
        def hook(mod: nn.Module, args: tuple, kwargs: dict, output: Any):
            return fn(mod, args, kwargs, output) if self._active() else None

        self.handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=always))

    def _install(self, module: nn.Module, port: str, stages: list[Stage]) -> None:
        if port == "input":
            self._hook_pre(module, lambda mod, args, kwargs: self._at_input(stages, mod, args, kwargs))
        elif port == "output":
            self._hook_post(module, lambda mod, args, kwargs, out: self._at_output(stages, mod, args, kwargs, out))
        elif port == "experts":
            self._hook_post(module, lambda mod, args, kwargs, out: self._at_experts(stages, mod, args, kwargs, out))
        else:
            make = self._watch_attention if port == "attention" else self._watch_router
            self._hook_pre(module, lambda mod, args, kwargs: self._enter(make(stages, args, kwargs)))
            self._hook_post(module, lambda mod, args, kwargs, out: self._leave(), always=True)

    def _enter(self, watch: Any) -> None:
        watch.__enter__()
        self.watches.append(watch)

    def _leave(self) -> None:
        if self.watches:
            self.watches.pop().__exit__(None, None, None)

    # ── the forward pass as it comes by ───────────────────────────────────────────────────────────────────────────

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.forwards += 1
        given = _arguments(module, args, kwargs)
        cache = given.get("past_key_values")
        start = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
        if start == 0 and self.forwards > 1:
            for tape in self.tapes:
                tape.__init__(tape.want, tape.site)  # a new forward pass: what was recorded of the last is replaced
        both = "decoder_input_ids" in given or getattr(getattr(module, "config", None), "is_encoder_decoder", False)
        main = given.get("decoder_input_ids" if both else "input_ids")
        if main is None:
            main = given.get("decoder_inputs_embeds" if both else "inputs_embeds")
        self.frames = {}
        length = main.shape[1] if isinstance(main, Tensor) and main.ndim > 1 else None
        if self.frame is not None and length is not None:
            self.frames[""] = replace(self.frame, start=start, length=length)
        elif length is not None and main is not None:
            mask = given.get("decoder_attention_mask" if both else "attention_mask")
            if isinstance(mask, Tensor) and mask.ndim == 2:
                self.frames[""] = Frame.of_mask(mask, start=start, length=length)
            else:
                self.frames[""] = replace(Frame.plain(len(main), start + length), start=start, length=length)
        if both and isinstance(given.get("attention_mask"), Tensor):
            self.frames["encoder"] = Frame.of_mask(given["attention_mask"])

    def _frame(self, site: Site, x: Tensor) -> Frame:
        axis = site.pos_axis
        length = x.shape[axis] if x.ndim > axis else 1
        frame = self.frames.get(site.stack)
        return Frame.plain(len(x), length) if frame is None else frame.seen(length)

    def _visit(self, stage: Stage, x: Tensor, *, keys: bool = False) -> Tensor:
        """Intervene on and record one whole site's tensor; the same object comes back where nothing changed."""
        stage.fired += 1
        new, shown, frame = x, slice(None), None
        if keys:
            frame, shown = self._key_frame(stage.site, x)
        for item, site in stage.do:
            before = new
            new = item.apply(new, site, frame or self._frame(stage.site, new))
            if new is not before:
                self.touched.add(id(item))
        if self.grad and stage.tapes and new.is_floating_point():
            new = new if new.requires_grad else new.detach().requires_grad_()
            stage.consumed = new = new.view_as(new) if new is x else new
        if stage.tapes:
            seen = new[:, shown] if keys else new
            seen = seen.clone() if stage.tap.volatile else seen
            own = self._frame(stage.site, seen)
            for tape in stage.tapes:
                tape.write(seen, own)
        return new

    def _key_frame(self, site: Site, x: Tensor) -> tuple[Frame, slice]:
        """Keys and values hold the whole cache: the frame of all of them, and the slice that this pass has added."""
        length = x.shape[1]
        query = self.frames.get(site.stack)
        if site.kind.startswith("cross"):
            return self.frames.get("encoder", Frame.plain(len(x), length)).seen(length), slice(None)
        if query is None:
            return Frame.plain(len(x), length), slice(None)
        end = query.start + query.length
        first = 0 if length >= end else end - length
        return replace(query, start=first, length=length), slice(query.start - first, end - first)

    def _through(self, stages: list[Stage], x: Tensor, at: Moment) -> Tensor:
        for stage in stages:
            at.block_input = self.block_inputs.get(stage.tap.block)
            values = [x]
            for view in stage.tap.views:
                values.append(view.get(values[-1], at))
            new = self._visit(stage, values[-1])
            if new is not values[-1]:
                for view, base in zip(reversed(stage.tap.views), reversed(values[:-1]), strict=True):
                    new = view.put(base, new, at)
                x = new
        return x

    def _finish(self, stages: list[Stage]) -> None:
        if self.stop is not None and any(stage.site == self.stop.whole for stage in stages):
            raise Stopped

    def _at_input(self, stages: list[Stage], module: nn.Module, args: tuple, kwargs: dict):
        key = stages[0].tap.key
        x = args[key] if isinstance(key, int) else kwargs[key]
        new = self._through(stages, x, Moment(module))
        self._finish(stages)
        if new is x:
            return None
        if isinstance(key, int):
            return (*args[:key], new, *args[key + 1 :]), kwargs
        return args, {**kwargs, key: new}

    def _at_output(self, stages: list[Stage], module: nn.Module, args: tuple, kwargs: dict, output: Any):
        key = stages[0].tap.key
        if key is None and not isinstance(output, Tensor):
            key = _first_tensor(output, stages[0].tap.path)
        x = output if key is None else output[key]
        source = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
        new = self._through(stages, x, Moment(module, source))
        self._finish(stages)
        return None if new is x else _replaced(output, key, new)

    def _at_experts(self, stages: list[Stage], module: nn.Module, args: tuple, kwargs: dict, output: Any):
        hidden, index, weight = routing(args, kwargs)
        rows = self.block_inputs[stages[0].tap.block].shape[:2]
        by_part = {stage.tap.key: stage for stage in stages}
        chosen = index
        if "index" in by_part:
            chosen = self._visit(by_part["index"], index.view(*rows, -1)).reshape(index.shape)
        post = before = neurons(module, hidden, chosen)
        if "post" in by_part:
            post = self._visit(by_part["post"], before.view(*rows, *before.shape[1:])).reshape(before.shape)
        self._finish(stages)
        changed = self.grad or any(id(item) in self.touched for stage in stages for item, _ in stage.do)
        return combine(module, post, chosen, weight).view(output.shape).to(output.dtype) if changed else None

    def _watch_attention(self, stages: list[Stage], args: tuple, kwargs: dict) -> Watch:
        site = stages[0].site
        layer = self.anatomy.layers[site.stack][site.layer or 0]
        recipe = self.anatomy.cross[site.whole] if site.kind.startswith("cross") else layer.recipe
        assert recipe is not None
        by_part = {stage.tap.key: stage for stage in stages}
        x = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.is_floating_point())

        def visit(part: str, tensor: Tensor) -> Tensor:
            stage = by_part[part]
            new = self._visit(stage, tensor, keys=part in "kv")
            self._finish([stage])
            return new

        return Watch(recipe, frozenset(str(part) for part in by_part), visit, len(x))

    def _watch_router(self, stages: list[Stage], args: tuple, kwargs: dict) -> RouterWatch:
        stage = stages[0]

        def visit(logits: Tensor) -> Tensor:
            rows = self.block_inputs[stage.tap.block].shape[:2]
            shaped = logits.view(*rows, -1)
            new = self._visit(stage, shaped)
            self._finish(stages)
            return logits if new is shaped else new.reshape(logits.shape)

        return RouterWatch(self.anatomy.inventory.units[stage.site], visit)

    def _note_block_input(self, path: str) -> Callable:
        stack = next(layers for layers in self.anatomy.layers.values() if any(layer.path == path for layer in layers))
        into = next(layer.into for layer in stack if layer.path == path)

        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.block_inputs[path] = args[into] if isinstance(into, int) else kwargs[into]

        return note

    # ── afterwards ────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_fired(self) -> None:
        for stage in self.stages.values():
            if not stage.fired and (stage.do or stage.tapes):
                stopped = f" (the pass was stopped at {self.stop})" if self.stop is not None else ""
                raise NeverFired(
                    f"{stage.site} was asked for, but module {stage.tap.path!r} was never called in this forward pass{stopped}"
                )
        for item in self.do:
            if id(item) not in self.touched:
                frame = self.frames.get("")
                seen = f"; the run had {frame.start + frame.length} positions" if frame is not None else ""
                raise NeverFired(f"{item} selected no position of any prompt{seen}")

    def gradients(self, scalar: Tensor) -> Recording:
        """d scalar / d site for every recorded site, kept as the recording keeps the site."""
        stages = [stage for stage in self.stages.values() if stage.consumed is not None]
        found = torch.autograd.grad(scalar, [stage.consumed for stage in stages], allow_unused=True)  # type: ignore[misc]
        tensors: dict[Site, Any] = {}
        for stage, gradient in zip(stages, found, strict=True):
            assert stage.consumed is not None
            value = torch.zeros_like(stage.consumed) if gradient is None else gradient
            for tape in stage.tapes:
                copy = Tape(tape.want, tape.site)
                copy.write(value, self._frame(stage.site, value))
                tensors[tape.site] = copy.done()
        own = self.recording()
        return Recording(tensors, own.frame, own.columns, own.reduced)

    def recording(self) -> Recording:
        """What was recorded; keeps of one run share their positions' bookkeeping."""
        tensors = {tape.site: tape.done() for tape in self.tapes if tape.starts}
        first = next((tape for tape in self.tapes if tape.kept), None)
        columns = None if first is None else torch.cat(first.kept, dim=1)
        x = next(iter(tensors.values()), None)
        frame = self.frame or self.frames.get("")
        if frame is None:
            length = x.shape[1] if isinstance(x, Tensor) and x.ndim > 1 else 0
            frame = Frame.plain(len(x) if isinstance(x, Tensor) else 0, length)
        return Recording(tensors, frame, columns, reduced=any(tape.want.reduce is not None for tape in self.tapes))


def _arguments(module: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    if not args:
        return kwargs
    names = list(inspect.signature(module.forward).parameters)
    return dict(zip(names, args, strict=False)) | kwargs


def _first_tensor(output: Any, path: str) -> int | str:
    items = output.items() if isinstance(output, dict) else enumerate(output) if isinstance(output, (tuple, list)) else ()
    for key, item in items:
        if isinstance(item, Tensor):
            return key
    raise TypeError(f"module {path!r} returned {type(output).__name__}, which holds no tensor to record")


def _replaced(output: Any, key: int | str | None, new: Tensor) -> Any:
    if key is None:
        return new
    if isinstance(output, dict):
        return type(output)(**{**output, key: new})
    items = [new if index == key else item for index, item in enumerate(output)]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def _refuse_compiled(module: nn.Module, paths: list[str]) -> None:
    for part in (module, *(module.get_submodule(path) for path in paths)):
        if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
            raise RuntimeError(
                "this model is compiled, and compiled code does not run hooks that are added afterwards: pass the "
                "module that was compiled (module._orig_mod), or load it again"
            )
