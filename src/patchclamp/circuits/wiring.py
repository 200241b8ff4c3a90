"""A network taken apart at its edges: each reader has a stream of its own, and each edge carries what it is told to.

    for side in sides(model, graph, task):
        run = side.wiring.run()                                         # the clean run: what every sender writes
        run = side.wiring.run(keep=keep, other=side.other)              # edges that are not kept carry the other run's
        run = side.wiring.run(nudged=True)                              # ready for gradients at every reader's stream

A reader's stream is the sum of what was sent, with (1 - keep) of each sender's contribution replaced by the other
run's: exact for 0 and 1, differentiable in between. All that is downstream is computed again by the model's own
modules; biases, and whatever no sender writes, stay as they are in the run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp import metrics
from patchclamp.circuits.blocks import Blocks, Written
from patchclamp.circuits.graph import Graph, nodes_of
from patchclamp.model import Model
from patchclamp.patching.sweep import check_fits
from patchclamp.sites import Site
from patchclamp.tasks import Task

Ablation = Literal["resample", "mean", "zero"]
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
Sent = Float[Tensor, "sender prompt pos d_model"]
Matrix = Float[Tensor, "sender reader place"]
Gradients = list[tuple[list[int], Tensor]]


@dataclass
class Passed:
    """One run: `logits` at the answers, what each sender wrote, and the nudges to streams by whose they are."""

    logits: Float[Tensor, "prompt vocab"]
    written: list[Tensor]
    nudges: list[tuple[list[int], Float[Tensor, "reader prompt pos d_model"]]] = field(default_factory=list)
    before: dict[int, Tensor] = field(default_factory=dict)  # the stream in front of each block, nothing exchanged
    added: dict[int, Tensor] = field(default_factory=dict)  # what attention added to it
    stream: Tensor = field(default_factory=lambda: torch.empty(0))  # the stream behind the last block
    patterns: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # attention, and its nudge, by layer
    dropped: set[int] = field(default_factory=set)  # layers through whose output no gradient goes back

    @property
    def sent(self) -> Sent:
        return torch.stack(self.written)

    def gradients(
        self, value: Float[Tensor, ""], *, drop: int | None = None, again: bool = False
    ) -> tuple[Gradients, dict[int, Tensor]]:
        """The gradient of a number with respect to each reader's stream, in groups of readers, and to each layer's
        attention pattern (where these were nudged); with `drop`, of what does not pass through that layer.
        """
        self.dropped.clear()
        self.dropped.update(() if drop is None else (drop,))
        leaves = [nudge for _, nudge in self.nudges] + [nudge for _, nudge in self.patterns.values()]
        found = torch.autograd.grad(value, leaves, retain_graph=again)
        streams = [(readers, gradient) for (readers, _), gradient in zip(self.nudges, found, strict=False)]
        return streams, dict(zip(self.patterns, found[len(streams) :], strict=True))


class Wiring:
    """The prompts `ids` of a task, on a graph; see the file's first lines."""

    def __init__(self, model: Model, graph: Graph, task: Task, ids: Int[Tensor, "prompt pos"]):
        self.model, self.graph, self.task = model, graph, task
        self.blocks = Blocks(model, ids, task.mask)
        self.place = graph.place(task).to(model.device)
        self._reader = {site: number for number, site in enumerate(graph.readers)}

    def run(
        self,
        *,
        keep: Matrix | None = None,
        other: Sent | None = None,
        start: Float[Tensor, "embedding prompt pos d_model"] | None = None,
        nudged: bool = False,
        patterns: bool = False,
        before: Passed | None = None,
        first: int = 0,
    ) -> Passed:
        """One pass. `start` is written by the embeddings in place of their own; with `before`, a run that is the same
        below layer `first`, the layers below are not computed. `nudged` runs are ready for gradients at every stream,
        with `patterns` also at every attention pattern.
        """
        blocks = self.blocks
        written = list(blocks.start if start is None else start)
        stream = torch.stack(written).sum(0) + blocks.rest
        state = _State(self, keep, other, nudged, patterns, written, stream)
        if before is not None and first:
            state.skip(before, first)
        for layer in range(first if before is not None else 0, self.model.n_layers):
            state.block(layer)
        logits = blocks.logits(state.read([Site("logits")])[0][0], self.task.positions)
        return Passed(
            logits, state.written, state.nudges, state.before, state.added, state.stream, state.patterns, state.dropped
        )

    def dots(self, difference: Sent, gradients: Gradients) -> Matrix:
        """For each edge and place the sum, over prompts and tokens, of what is sent times the reader's gradient."""
        if len(self.graph.places) > 1:
            return self.dots_by_prompt(difference, gradients).sum(0)
        found = self.graph.zeros().to(difference)
        for readers, gradient in gradients:
            found[:, readers, 0] = difference.flatten(1) @ gradient.flatten(1).T
        return found.detach().cpu()

    def dots_by_prompt(self, difference: Sent, gradients: Gradients) -> Float[Tensor, "prompt sender reader place"]:
        """The same for each prompt."""
        graph = self.graph
        where = torch.nn.functional.one_hot(self.place, len(graph.places)).to(difference.dtype)
        found = graph.zeros().to(difference).repeat(difference.shape[1], 1, 1, 1)
        for readers, gradient in gradients:
            product = torch.einsum("sbtd,rbtd->srbt", difference, gradient)
            found[:, :, readers] = torch.einsum("srbt,btp->bsrp", product, where)
        return found.detach().cpu()


class _State:
    """A run on its way: the stream so far, who wrote it, and who is still to read."""

    def __init__(
        self,
        wiring: Wiring,
        keep: Matrix | None,
        other: Sent | None,
        nudged: bool,
        attention: bool,
        written: list[Tensor],
        stream: Tensor,
    ):
        self.wiring, self.keep, self.other, self.nudged, self.attention = wiring, keep, other, nudged, attention
        self.written: list[Tensor] = written
        self.stream: Tensor = stream
        self.nudges: list[tuple[list[int], Tensor]] = []
        self.before: dict[int, Tensor] = {}
        self.added: dict[int, Tensor] = {}
        self.patterns: dict[int, tuple[Tensor, Tensor]] = {}
        self.dropped: set[int] = set()
        self.free = keep is not None and not keep.requires_grad

    def skip(self, before: Passed, first: int) -> None:
        graph = self.wiring.graph
        below = [n for n, site in enumerate(graph.senders) if site.layer is None or site.layer < first]
        self.written = [before.written[n] for n in below]
        self.stream = before.before.get(first, before.stream)
        self.before, self.added = dict(before.before), dict(before.added)

    def block(self, layer: int) -> None:
        blocks, model = self.wiring.blocks, self.wiring.model
        _, inputs, mlp = nodes_of(model, layer)
        behind = model.anatomy.layers[""][layer].sequential
        self.before[layer] = stream = self.stream
        given = None
        if inputs:
            streams, rows = self.read(inputs)
            if len(inputs) == 1:
                stream = streams[0]
            elif len(streams) == 1:
                given, stream = None, streams[0]
                if mlp and not behind:
                    given = _own(blocks.inputs(layer, streams), inputs, rows)
            else:
                given = _own(blocks.inputs(layer, streams), inputs, rows)
        reader = Site("mlp_in", layer)
        if mlp and not behind:
            stream = self.read([reader])[0][0]

        def middle(written: Written) -> Tensor:
            self._wrote(layer, written)
            return self.read([reader])[0][0]

        def nudge(pattern: Tensor) -> Tensor:
            self.patterns[layer] = pattern.detach(), torch.zeros_like(pattern, requires_grad=True)
            return pattern + self.patterns[layer][1]

        watched = nudge if self.attention and len(inputs) > 1 else None
        done = blocks.block(layer, stream, heads=given, middle=middle if mlp and behind else None, pattern=watched)
        if not (mlp and behind):
            self._wrote(layer, done)
        if done.mlp is not None:
            self.written.append(done.mlp)
            self.stream = self.stream + self._droppable(layer, done.mlp)

    def _wrote(self, layer: int, written: Written) -> None:
        if written.mixed is None:
            return
        self.written += list(written.heads) if written.heads is not None else [written.mixed]
        self.added[layer] = written.mixed
        self.stream = self.stream + self._droppable(layer, written.mixed)

    def _droppable(self, layer: int, x: Tensor) -> Tensor:
        if self.nudged and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda gradient: torch.zeros_like(gradient) if layer in self.dropped else gradient)
        return x

    def read(self, readers: list[Site]) -> tuple[Float[Tensor, "stream prompt pos d_model"], list[int]]:
        """The streams of these readers, and which of them is whose; readers of one stream share it."""
        numbers = [self.wiring._reader[site] for site in readers]
        stream, rows = self.stream[None], [0] * len(readers)
        if self.keep is not None:
            change, rows = self._change(numbers)
            stream = stream if change is None else stream + change
        if self.nudged:
            stream = stream[rows] if len(stream) > 1 else stream.expand(len(readers), *stream.shape[1:])
            nudge = torch.zeros_like(stream, requires_grad=True)
            self.nudges.append((numbers, nudge))
            stream, rows = stream + nudge, list(range(len(readers)))
        return stream, rows

    def _change(self, numbers: list[int]) -> tuple[Tensor | None, list[int]]:
        """What is exchanged in each distinct stream."""
        assert self.keep is not None and self.other is not None
        share = 1 - self.keep[: len(self.written), numbers]  # [sender, reader, place]
        senders = torch.arange(len(self.written))
        rows = list(range(len(numbers)))
        if self.free:
            share, inverse = share.unique(dim=1, return_inverse=True)
            rows = inverse.tolist()
            senders = share.flatten(1).any(1).nonzero().flatten()
            if not len(senders):
                return None, [0] * len(numbers)
            share = share[senders]
        difference = torch.stack([self.other[n] - self.written[n] for n in senders.tolist()])
        if share.shape[2] == 1:
            flat = share[..., 0].T.to(difference.dtype) @ difference.flatten(1)
            return flat.view(-1, *difference.shape[1:]), rows
        places = share[:, :, self.wiring.place.to(share.device)].to(difference.dtype)
        return torch.einsum("srbt,sbtd->rbtd", places, difference), rows


def _own(made: dict[str, Tensor], inputs: list[Site], rows: list[int]) -> dict[str, Tensor]:
    """Each head's queries, keys and values out of its own stream's."""
    found = {}
    for kind in "qkv":
        own = [(row, site.unit) for site, row in zip(inputs, rows, strict=True) if site.kind == kind]
        found[kind] = torch.stack([made[kind][row, :, :, unit] for row, unit in own], 2)
    return found


# ── the prompts of a task, batch by batch ─────────────────────────────────────────────────────────────────────────


@dataclass
class Side:
    """Some prompts of a task: their clean network, its run, and what edges carry that are cut."""

    task: Task
    rows: slice
    wiring: Wiring
    clean: Passed
    other: Sent


def sides(
    model: Model, graph: Graph, task: Task, *, ablation: Ablation = "resample", batch: int = 16
) -> Iterator[Side]:
    """The task in batches of prompts, each with what its senders write in the other run.

    That is the corrupted prompts' ("resample"), their mean by position over all of the task ("mean"), or nothing
    ("zero").
    """
    check_fits(model, task)
    if ablation not in ABLATIONS:
        raise ValueError(f"ablation={ablation!r}: it is 'resample', 'mean' or 'zero'")
    mean = _mean(model, graph, task, batch) if ablation == "mean" else None
    for first in range(0, len(task), batch):
        part = task[first : first + batch]
        wiring = Wiring(model, graph, part, part.clean)
        with torch.no_grad():
            clean = wiring.run()
            if mean is not None:
                other = mean[:, None, : part.clean.shape[1]].expand_as(clean.sent)
            elif ablation == "zero":
                other = torch.zeros_like(clean.sent)
            else:
                other = Wiring(model, graph, part, part.corrupt).run().sent
        yield Side(part, slice(first, first + len(part)), wiring, clean, other)


def _mean(model: Model, graph: Graph, task: Task, batch: int) -> Float[Tensor, "sender pos d_model"]:
    total = None
    count = task.mask.sum(0)
    for first in range(0, len(task), batch):
        part = task[first : first + batch]
        with torch.no_grad():
            sent = Wiring(model, graph, part, part.corrupt).run().sent
        real = part.mask.to(sent.device)
        summed = (sent * real[None, :, :, None]).sum(1)
        if total is None:
            total = summed.new_zeros(len(sent), task.clean.shape[1], summed.shape[-1])
        total[:, : summed.shape[1]] += summed
    assert total is not None
    return total / count.to(total.device)[:, None]


def metric_of(metric: "str | metrics.Metric") -> metrics.Metric:
    return metrics.by_name(metric) if isinstance(metric, str) else metric
