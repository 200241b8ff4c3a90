"""Where in its prompts each forward pass of a run stands: a whole prompt, a chunk of it, or the next token of each.

What a pass is given (ids, masks, a cache) says so; `run` and `generate` know the prompts beforehand.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from patchclamp.anatomy.discover import Anatomy
from patchclamp.positions import Frame
from patchclamp.sites import Site


class Passes:
    """The frames of the pass at hand, by stack, and of the sequence that it belongs to."""

    def __init__(self, anatomy: Anatomy, known: Mapping[str, Frame], reach: int = 0):
        self.anatomy, self.known, self.reach = anatomy, dict(known), reach
        self.sequence: dict[str, Frame] = dict(known)  # over the prompts, whatever pass is at hand
        self.frames: dict[str, Frame] = dict(known)
        self.reached = 0
        self.count = 0
        self.running = False
        self.containers = {
            name: ".".join(layers[0].path.split(".")[:-2]) for name, layers in anatomy.layers.items() if name and layers
        }

    def begin(self, module: nn.Module, args: tuple, kwargs: dict) -> bool:
        """Take in the arguments of one forward pass; whether a new sequence begins that follows another."""
        self.count += 1
        self.running = True
        given = _arguments(module, args, kwargs)
        both = "decoder_input_ids" in given or getattr(getattr(module, "config", None), "is_encoder_decoder", False)
        names = ("decoder_input_ids", "decoder_inputs_embeds") if both else ("input_ids", "inputs_embeds")
        main = next((given[n] for n in names if isinstance(given.get(n), Tensor) and given[n].ndim > 1), None)
        start = self._start(given)
        mask = given.get("decoder_attention_mask" if both else "attention_mask")
        source = given.get("attention_mask")
        if both and "encoder" not in self.known and isinstance(source, Tensor) and source.ndim == 2:
            self.sequence["encoder"] = self.frames["encoder"] = Frame.of_mask(source)
        if main is None:
            self.frames[""] = self.sequence[""] = self.known[""] if "" in self.known else Frame.unordered()
        else:
            self._advance(main, mask if isinstance(mask, Tensor) and mask.ndim == 2 else None, start)
        return start == 0 and self.count > 1

    def end(self) -> None:
        self.running = False

    @property
    def batch(self) -> int:
        """Prompts of this pass; 0 where that is unknown."""
        frame = self.frames.get("")
        return frame.batch if frame is not None and frame.ordered else 0

    def _start(self, given: dict[str, Any]) -> int:
        if "" in self.known:
            return self.reached
        cache = given.get("past_key_values", given.get("cache_params"))
        try:
            return 0 if cache is None else int(cache.get_seq_length())
        except (AttributeError, ValueError, TypeError):  # a cache of states, which keeps no count of tokens
            goes_on = getattr(cache, "has_previous_state", None)
            return self.reached if goes_on is not None and goes_on() else 0

    def _advance(self, main: Tensor, mask: Tensor | None, start: int) -> None:
        length = main.shape[1]
        if "" not in self.known and (start == 0 or "" not in self.sequence):
            whole = max(start + length, 0 if mask is None else mask.shape[1])
            own = None if mask is None or len(mask) != len(main) else mask
            found = Frame.plain(len(main), whole) if own is None else Frame.of_mask(own)
            self.sequence[""] = replace(found, reach=self.reach)
        self.reached = start + length
        self.frames[""] = replace(self.sequence[""], start=start, length=length)

    # ── tensors as they come by ───────────────────────────────────────────────────────────────────────────────────

    def frame(self, site: Site, x: Tensor) -> Frame:
        """What the positions of a site's whole tensor are."""
        if site.kind == "module":
            return self._module_frame(site, x)
        if site.kind == "logits" and self.anatomy.head == "classes":
            return Frame.unordered(len(x))
        length = x.shape[site.pos_axis]
        frame = self.frames.get(site.stack)
        if frame is None or not frame.ordered:
            return Frame.plain(len(x), length)
        if site.kind == "logits" and length < frame.length:  # logits_to_keep: the last ones
            return replace(frame, start=frame.start + frame.length - length, length=length)
        return frame.seen(length)

    def _module_frame(self, site: Site, x: Tensor) -> Frame:
        stack = next((n for n, p in self.containers.items() if site.path == p or site.path.startswith(p + ".")), "")
        frame = self.frames.get(stack)
        if frame is None or not frame.ordered:
            sequence = bool(self.anatomy.taps) and x.ndim == 3
            return Frame.plain(len(x), x.shape[1]) if sequence else Frame.unordered(len(x) if x.ndim else 0)
        fits = x.ndim > 1 and list(x.shape[:2]) == [frame.batch, frame.length]
        return frame if fits else replace(frame, ordered=False)

    def keys(self, site: Site, x: Tensor) -> tuple[Frame, slice]:
        """Keys and values hold the whole cache: the frame of all of them, and the slice that this pass has added."""
        length = x.shape[1]
        frame = self.frames.get(site.source)
        if frame is None or not frame.ordered:
            return Frame.plain(len(x), length), slice(None)
        if site.kind.startswith("cross"):
            return frame.seen(length), slice(None)
        end = frame.start + frame.length
        first = 0 if length >= end else end - length
        return replace(frame, start=first, length=length), slice(frame.start - first, end - first)


def _arguments(module: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    if not args:
        return kwargs
    names = list(inspect.signature(module.forward).parameters)
    return dict(zip(names, args, strict=False)) | kwargs
