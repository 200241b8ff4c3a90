"""Hooks for one run: put in, used, and taken out again, whatever happens in between.

A `Session` is the only thing in the package that touches a module. It registers handles, remembers them, and removes
exactly those. It acts in the thread that opened it, so that two threads may run two experiments on one model.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.anatomy.attention import Watch
from patchclamp.anatomy.discover import Anatomy, Tap
from patchclamp.anatomy.experts import RouterWatch, by_expert, by_slot, combine, neurons, rerouted, routing
from patchclamp.anatomy.views import Moment, first_tensor, replaced
from patchclamp.interventions import Intervention
from patchclamp.passes import Passes
from patchclamp.positions import Frame
from patchclamp.recording import Recording
from patchclamp.sites import ORDER, Site, SiteError
from patchclamp.tape import Keep, Tape


class NeverFired(RuntimeError):
    """A site was asked for, exists, and yet the forward pass never came by."""


class Stopped(BaseException):
    """Ends a forward pass early; caught by `Model.run`. A BaseException, so that no model's `except` swallows it."""


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

    `frames` describe the prompts where they are known beforehand (`run`, `generate`), by stack; otherwise they are read
    off the arguments of each forward pass (`under`). The pass ends once all sites of `stop` have been visited.
    """

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        keeps: Sequence[Keep],
        do: Sequence[Intervention],
        *,
        frames: Mapping[str, Frame] | None = None,
        reach: int = 0,
        grad: bool = False,
        stop: Sequence[Site] = (),
    ):
        self.module, self.anatomy, self.grad, self.stop = module, anatomy, grad, tuple(stop)
        self.passes = Passes(anatomy, frames or {}, reach)
        self.modules = dict(module.named_modules())
        self.stages: dict[Site, Stage] = {}
        self.tapes: dict[Site, Tape] = {}
        self.handles: list[Any] = []
        self.notes: list[Any] = []
        self.block_inputs: dict[str, Tensor] = {}
        self.watches: list[Any] = []
        self.touched: set[int] = set()
        self.do = list(do)
        for item in self.do:
            if not isinstance(item, Intervention):
                raise TypeError(f"do= takes interventions (pc.patch, pc.add, ...), not {type(item).__name__}")
            for site in anatomy.inventory.expand(item.site):
                self._stage(site).do.append((item, site))
        for want in keeps:
            for site in anatomy.inventory.expand(want.sites):
                self._keep(want, site)
        for site in self.stop:
            self._stage(site)

    def _keep(self, want: Keep, site: Site) -> None:
        if site in self.tapes:
            if not self.tapes[site].want.same(want):
                raise ValueError(
                    f"record= asks for {site} twice, with different settings: {self.tapes[site].want} and {want}"
                )
            return
        self.tapes[site] = tape = Tape(want, site)
        self._stage(site).tapes.append(tape)

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
        _refuse_compiled(self.modules)
        try:
            self._hook_pre(self.module, self._begin)
            self._hook_post(self.module, lambda mod, args, kwargs, out: self.passes.end(), always=True)
            for (path, port), stages in groups.items():
                self._install(self.modules[path], port, stages)
            for session in (*_stack(), self):
                session._note_blocks()
        except BaseException:
            self._remove()
            raise
        _stack().append(self)
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self._remove()
        if self in _stack():
            _stack().remove(self)
        if kind is None and self.passes.count:
            self._check_fired()

    def _remove(self) -> None:
        for handle in (*self.handles, *self.notes):
            handle.remove()
        self.handles.clear()
        self.notes.clear()
        self._leave_all()

    def _leave_all(self) -> None:
        while self.watches:
            self.watches.pop().__exit__(None, None, None)

    def _active(self) -> bool:
        stack = _stack()
        if self in stack:
            return True
        # A thread of autograd's own, which runs a checkpointed block again.
        return not stack and torch._C._current_graph_task_id() != -1

    def _hook_pre(self, module: nn.Module, fn: Callable) -> None:
        self.handles.append(self._pre(module, fn))

    def _pre(self, module: nn.Module, fn: Callable) -> Any:
        def hook(mod: nn.Module, args: tuple, kwargs: dict):
            return fn(mod, args, kwargs) if self._active() else None

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _hook_post(self, module: nn.Module, fn: Callable, *, always: bool = False) -> None:
        def hook(mod: nn.Module, args: tuple, kwargs: dict, output: Any):
            return fn(mod, args, kwargs, output) if self._active() else None

        self.handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=always))

    def _install(self, module: nn.Module, port: str, stages: list[Stage]) -> None:
        if port == "input":
            self._hook_pre(module, lambda mod, args, kwargs: self._at_input(stages, mod, args, kwargs))
        elif port == "output":
            self._hook_post(module, lambda mod, args, kwargs, out: self._at_output(stages, mod, args, kwargs, out))
        elif port == "routing":
            self._hook_pre(module, lambda mod, args, kwargs: self._at_routing(stages, args, kwargs))
        elif port == "experts":
            self._hook_post(module, lambda mod, args, kwargs, out: self._at_experts(stages, mod, args, kwargs, out))
        else:
            make = self._watch_attention if port == "attention" else self._watch_router
            self._hook_pre(module, lambda mod, args, kwargs: self._enter(make(stages, args, kwargs)))
            self._hook_post(module, lambda mod, args, kwargs, out: self._leave(), always=True)
            self._hook_post(module, lambda mod, args, kwargs, out: self._finish())

    def _enter(self, watch: Any) -> None:
        watch.__enter__()
        self.watches.append(watch)

    def _leave(self) -> None:
        if self.watches:
            self.watches.pop().__exit__(None, None, None)

    # ── the forward pass as it comes by ───────────────────────────────────────────────────────────────────────────

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._leave_all()  # of a pass that was interrupted, and the interruption caught
        if self.passes.begin(module, args, kwargs):
            for tape in self.tapes.values():
                tape.rewind()  # a new forward pass: what was recorded of the last is replaced

    def _visit(self, stage: Stage, x: Tensor, *, keys: bool = False) -> Tensor:
        """Intervene on and record one whole site's tensor; the same object comes back where nothing changed."""
        stage.fired += 1
        new = x
        frame, shown = self.passes.keys(stage.site, x) if keys else (self.passes.frame(stage.site, x), slice(None))
        for item, site in stage.do:
            before = new
            new = item.apply(new, site, frame)
            if new is not before:
                self.touched.add(id(item))
        if self.grad and stage.tapes and new.is_floating_point():
            new = new if new.requires_grad else new.detach().requires_grad_()
            stage.consumed = new = new.view_as(new) if new is x else new
        if stage.tapes:
            self._record(stage, new[:, shown] if keys else new)
        return new.clone() if stage.tap.volatile and new is not x else new  # what is ours is not written to

    def _record(self, stage: Stage, x: Tensor) -> None:
        frame = self.passes.frame(stage.site, x)
        if stage.site.source != stage.site.stack:
            frame = self.passes.keys(stage.site, x)[0]
        if stage.tap.volatile or (stage.tap.key in ("k", "v") and frame.start):
            x = x.clone()  # it is written to later on: by the architecture, by a cache
        for tape in stage.tapes:
            if frame.start not in tape.starts:
                tape.write(x, frame)
            elif self.passes.running and not stage.site.kind.startswith("cross"):  # not checkpointing, not a cache
                raise SiteError(
                    f"module {stage.tap.path!r} is called several times in one forward pass, and a recording of "
                    f"{stage.site} would hold one of them"
                )

    def _through(self, stages: list[Stage], x: Tensor, at: Moment) -> Tensor:
        for stage in stages:
            at.block_input, at.batch = self.block_inputs.get(stage.tap.block), self.passes.batch
            values = [x]
            for view in stage.tap.views:
                values.append(view.get(values[-1], at))
            new = self._visit(stage, values[-1])
            if new is not values[-1]:
                for view, base in zip(reversed(stage.tap.views), reversed(values[:-1]), strict=True):
                    new = view.put(base, new, at)
                x = new
        return x

    def _finish(self) -> None:
        if self.stop and all(self.stages[site.whole].fired for site in self.stop):
            raise Stopped

    def _at_input(self, stages: list[Stage], module: nn.Module, args: tuple, kwargs: dict):
        key = stages[0].tap.key
        x = args[key] if isinstance(key, int) else kwargs[key]
        new = self._through(stages, x, Moment(module))
        self._finish()
        if new is x:
            return None
        if isinstance(key, int):
            return (*args[:key], new, *args[key + 1 :]), kwargs
        return args, {**kwargs, key: new}

    def _at_output(self, stages: list[Stage], module: nn.Module, args: tuple, kwargs: dict, output: Any):
        key = stages[0].tap.key
        if key is None and not isinstance(output, Tensor):
            key = first_tensor(output, stages[0].tap.path)
        x: Tensor = output if key is None else output[key]  # type: ignore[index]
        source = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
        new = self._through(stages, x, Moment(module, source))
        self._finish()
        return None if new is x else replaced(output, key, new)

    def _at_routing(self, stages: list[Stage], args: tuple, kwargs: dict):
        _, index, weight = routing(args, kwargs)
        chosen, given = index, weight
        for stage in stages:  # the index first: its edits move weights
            by_index = stage.site.kind == "expert_index"
            shown = chosen if by_index else by_expert(chosen, given, self._units(stage))
            new = self._visit_flat(stage, shown)
            if new is not shown:
                chosen, given = (new, given) if by_index else by_slot(chosen, new)
        self._finish()
        return None if chosen is index and given is weight else rerouted(args, kwargs, chosen, given)

    def _at_experts(self, stages: list[Stage], module: nn.Module, args: tuple, kwargs: dict, output: Any):
        hidden, index, weight = routing(args, kwargs)
        every = neurons(module, hidden, index)
        shown = every[:, : self._units(stages[0])]  # the router's slots; others are there for a weight's sake
        new = self._visit_flat(stages[0], shown)
        self._finish()
        if new is shown:
            return None
        post = torch.cat([new, every[:, shown.shape[1] :]], dim=1)
        return combine(module, post, index, weight).view(output.shape).to(output.dtype)

    def _watch_attention(self, stages: list[Stage], args: tuple, kwargs: dict) -> Watch:
        site = stages[0].site
        layer = self.anatomy.layers[site.stack][site.layer or 0]
        recipe = self.anatomy.cross[site.whole] if site.kind.startswith("cross") else layer.recipe
        assert recipe is not None
        by_part = {stage.tap.key: stage for stage in stages}
        x = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.is_floating_point())

        def visit(part: str, tensor: Tensor) -> Tensor:
            return self._visit(by_part[part], tensor, keys=part in "kv")

        return Watch(recipe, frozenset(str(part) for part in by_part), visit, len(x))

    def _watch_router(self, stages: list[Stage], args: tuple, kwargs: dict) -> RouterWatch:
        return RouterWatch(self._units(stages[0]), lambda logits: self._visit_flat(stages[0], logits))

    def _units(self, stage: Stage) -> int:
        return self.anatomy.inventory.units[stage.site]

    def _visit_flat(self, stage: Stage, x: Tensor) -> Tensor:
        """Visit what has one row for each token of all prompts: [prompt * pos, ...]."""
        shaped = x.reshape(*self.block_inputs[stage.tap.block].shape[:2], *x.shape[1:])
        new = self._visit(stage, shaped)
        return x if new is shaped else new.reshape(x.shape)

    def _note_blocks(self) -> None:
        """Note what blocks read, after every session's edits of it: sites inside a block are made of it."""
        for handle in self.notes:
            handle.remove()
        wanted = {stage.tap.block for stage in self.stages.values() if stage.tap.block}
        blocks = {layer.path: layer.into for stack in self.anatomy.layers.values() for layer in stack}
        self.notes = [self._pre(self.modules[path], self._note_input(path, blocks[path])) for path in wanted]

    def _note_input(self, path: str, into: int | str) -> Callable:
        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.block_inputs[path] = args[into] if isinstance(into, int) else kwargs[into]

        return note

    # ── afterwards ────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_fired(self) -> None:
        for stage in self.stages.values():
            if not stage.fired and (stage.do or stage.tapes):
                stopped = f" before it was stopped at {', '.join(map(str, self.stop))}" if self.stop else ""
                raise NeverFired(
                    f"{stage.site} was asked for, but module {stage.tap.path!r} was never called in this forward pass"
                    + stopped
                )
        for item in self.do:
            if id(item) not in self.touched:
                seen = f"; the run had {self.passes.reached} positions" if self.passes.reached else ""
                raise NeverFired(f"{item} selected no position of any prompt{seen}")

    def gradients(self, scalar: Tensor) -> Recording:
        """d scalar / d site for every recorded site, kept as the recording keeps the site."""
        stages = [stage for stage in self.stages.values() if stage.consumed is not None]
        found = torch.autograd.grad(scalar, [stage.consumed for stage in stages], allow_unused=True)  # type: ignore[misc]
        tapes: list[Tape] = []
        for stage, gradient in zip(stages, found, strict=True):
            assert stage.consumed is not None
            value = torch.zeros_like(stage.consumed) if gradient is None else gradient
            frame = self.passes.frame(stage.site, value)
            if stage.site.source != stage.site.stack:
                frame = self.passes.keys(stage.site, value)[0]
            for tape in stage.tapes:
                tapes.append(Tape(tape.want, tape.site))
                tapes[-1].write(value, frame)
        return self._joined(tapes)

    def recording(self) -> Recording:
        """What was recorded so far."""
        return self._joined([tape for tape in self.tapes.values() if tape.starts])

    def _joined(self, tapes: list[Tape]) -> Recording:
        tensors = {tape.site: tape.done() for tape in tapes}
        columns = {tape.site: tape.columns for tape in tapes if tape.columns is not None}
        reduced = frozenset(tape.site for tape in tapes if tape.want.reduce is not None)
        frames = {name: replace(frame, start=0) for name, frame in self.passes.sequence.items()}
        frame = frames.pop("", None)
        if frame is None or not frame.ordered:
            x = next((t for t in tensors.values() if isinstance(t, Tensor)), None)
            frame = Frame.plain(0 if x is None else len(x), x.shape[1] if x is not None and x.ndim > 1 else 0)
        layers = self.anatomy.inventory.layers
        return Recording(tensors, frame, columns=columns, reduced=reduced, frames=frames, layers=layers)


def _refuse_compiled(modules: Mapping[str, nn.Module]) -> None:
    for part in modules.values():
        if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
            raise RuntimeError(
                "this model is compiled, and compiled code does not run hooks that are added afterwards: pass the "
                "module that was compiled (module._orig_mod), or load it again"
            )
