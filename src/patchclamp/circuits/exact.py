"""Exact edge patching: each edge's contribution exchanged at its reader, and all that follows computed again.

    scores = circuits.exact(model, task)             # what the metric loses without each edge, every number a whole run

The reader alone reads the other run's contribution of the sender; everybody else reads what they read before (Conmy et
al. 2023, arXiv:2304.14997; Hanna et al. 2024, arXiv:2403.17806). Nothing below the reader, and in causal models
nothing before the first token that differs, is computed again; readers of one layer make their queries, keys and
values for all senders in one call, and edges of one layer share a batch. The loop of one forward pass for each edge,
which this equals, is in the tests.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from patchclamp import metrics
from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import Ablation, Matrix, Side, metric_of, sides
from patchclamp.model import Model
from patchclamp.patching.restart import Restart
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress

Direction = Literal["noise", "denoise"]


@torch.no_grad()
def exact(
    model: Model,
    task: Task,
    graph: Graph | None = None,
    *,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablation: Ablation = "resample",
    direction: Direction = "noise",
    batch: int = 16,
    rows: int = 1024,
) -> Scores:
    """What the metric (mean over prompts) loses when one edge is cut; exact.

    `direction="denoise"` instead takes the corrupted run and counts what the clean contribution of each edge brings
    back. `batch` prompts are held at once, and `rows` prompts times edges run side by side.
    """
    if direction not in ("noise", "denoise"):
        raise ValueError(f"direction={direction!r}: it is 'noise' or 'denoise'")
    graph, score = as_graph(model, graph), metric_of(metric)
    asked = task if direction == "noise" else replace(task, clean=task.corrupt, corrupt=task.clean)
    total = graph.zeros()
    with progress("cutting edges", graph.size * len(task)) as advance:
        for side in sides(model, graph, asked, ablation=ablation, batch=batch):
            base = score(side.clean.logits, side.task).double().cpu()
            for edges, logits in _Cuts(model, graph, side, rows).all():
                for edge, answer in zip(edges, logits, strict=True):
                    total[edge.sender, edge.reader, edge.place] += (
                        base - score(answer, side.task).double().cpu()
                    ).sum()
            advance(graph.size * len(side.task))
    sign = 1 if direction == "noise" else -1
    values = graph.vector(sign * total / len(task))
    return scores_of(model, task, graph, values, "exact", metric, ablation=ablation, direction=direction)


@dataclass(frozen=True)
class _Cut:
    """An edge at a place, by its indices; the reader's unit; the place's tokens (None: all)."""

    sender: int
    reader: int
    place: int
    unit: int | None


class _Cuts:
    """All edges of a batch of prompts, in groups that share a pass."""

    def __init__(self, model: Model, graph: Graph, side: Side, rows: int):
        self.model, self.graph, self.side = model, graph, side
        self.blocks, self.sent = side.wiring.blocks, side.clean.sent
        self.difference = side.other - self.sent
        self.copies = max(1, rows // len(side.task))
        differs = (self.difference != 0).flatten(3).any(-1)  # [sender, prompt, pos]
        self.first = int(differs.flatten(0, 1).any(0).nonzero()[0]) if bool(differs.any()) else 0
        where = torch.nn.functional.one_hot(side.wiring.place, len(graph.places)).bool()
        self.places = where.permute(2, 0, 1)  # [place, prompt, pos]
        self.live = (differs[:, None] & self.places[None]).flatten(2).any(-1)  # [sender, place]: can anything change?
        task = side.task
        self.restart = Restart(model, task.clean, task.clean, task.mask, task.positions)
        self.number = {site: index for index, site in enumerate(graph.senders)}

    def all(self) -> Iterator[tuple[list[_Cut], Tensor]]:
        by_place: dict[tuple[str, int | None], list[int]] = {}
        for index, reader in enumerate(self.graph.readers):
            by_place.setdefault(("qkv" if reader.kind in "qkv" else reader.kind, reader.layer), []).append(index)
        for (kind, layer), readers in by_place.items():
            senders = [self.number[a] for a, b in self.graph.edges if b == self.graph.readers[readers[0]]]
            senders = [n for n in senders if bool(self.live[n].any())]
            step = self.copies
            for at in range(0, len(senders), step):
                yield from self._of(kind, layer, readers, senders[at : at + step])

    def _of(self, kind: str, layer: int | None, readers: list[int], senders: list[int]):
        if kind == "logits":
            yield from self._logits(readers[0], senders)
        elif kind == "attn_in":
            yield from self._mixers(readers[0], senders)
        elif kind == "mlp_in":
            assert layer is not None
            stream = self._stream(layer, mlp=True)
            made = self.blocks.mlp_input(layer, torch.cat([stream[None], stream + self.difference[senders]]))
            cuts, values = self._changes(made[:1], made[1:], senders, readers[0], None)
            yield from self._patched(Site(kind, layer), cuts, values)
        else:
            assert layer is not None
            stream = self._stream(layer)
            made = self.blocks.inputs(layer, torch.cat([stream[None], stream + self.difference[senders]]))
            for part in "qkv":
                cuts, values = [], []
                for reader in readers:
                    site = self.graph.readers[reader]
                    if site.kind == part:
                        own = made[part][:, :, :, site.unit]
                        more = self._changes(own[:1], own[1:], senders, reader, site.unit)
                        cuts, values = cuts + more[0], values + more[1]
                yield from self._patched(Site(part, layer), cuts, values)

    def _stream(self, layer: int, mlp: bool = False) -> Tensor:
        """The clean stream that a layer's readers take."""
        stream = self.side.clean.before[layer]
        if not mlp or not self.model.anatomy.layers[""][layer].sequential:
            return stream
        return stream + self.side.clean.added[layer]

    def _changes(
        self, base: Tensor, made: Tensor, senders: list[int], reader: int, unit: int | None
    ) -> tuple[list[_Cut], list[Tensor]]:
        """Edges into one reader at each place, with what it is given then; those that change nothing are left out."""
        cuts, values = [], []
        for sender, new in zip(senders, made, strict=True):
            for place, where in enumerate(self.places):
                if not bool(self.live[sender, place]):
                    continue
                value = new if len(self.places) == 1 else torch.where(where[..., None], new, base[0])
                if not torch.equal(value, base[0]):
                    cuts.append(_Cut(sender, reader, place, unit))
                    values.append(value)
        return cuts, values

    def _patched(self, site: Site, cuts: list[_Cut], values: list[Tensor]) -> Iterator[tuple[list[_Cut], Tensor]]:
        start = self.first if self.restart.cacheable else 0
        for at in range(0, len(cuts), self.copies):
            some, given = cuts[at : at + self.copies], torch.stack(values[at : at + self.copies])
            copies = torch.arange(len(some), device=given.device)
            units = torch.tensor([0 if cut.unit is None else cut.unit for cut in some], device=given.device)

            def write(x: Tensor, start: int, given=given, copies=copies, units=units) -> Tensor:
                out = x.clone().unflatten(0, (-1, len(copies)))
                new = given[:, :, start : start + x.shape[1]]
                if x.ndim == 4:
                    out[:, copies, :, units] = new
                else:
                    out[:] = new.transpose(0, 1)
                return out.flatten(0, 1)

            assert site.layer is not None
            logits = self.restart.run(site.layer, len(some), start=start, site=site, write=write)
            yield some, logits.transpose(0, 1)

    def _logits(self, reader: int, senders: list[int]) -> Iterator[tuple[list[_Cut], Tensor]]:
        stream, answers = self.side.clean.stream, self.side.task.positions
        for place, where in enumerate(self.places):
            some = [n for n in senders if bool(self.live[n, place])]
            if some:
                streams = stream + self.difference[some] * where[..., None]
                logits = self.blocks.logits(streams.flatten(0, 1), answers).unflatten(0, (len(some), -1))
                yield [_Cut(n, reader, place, None) for n in some], logits

    def _mixers(self, reader: int, senders: list[int]) -> Iterator[tuple[list[_Cut], Tensor]]:
        """Into a block that mixes tokens in a way of its own: a run of the network for each edge."""
        for sender in senders:
            for place in self.live[sender].nonzero().flatten().tolist():
                keep: Matrix = torch.ones(len(self.graph.senders), len(self.graph.readers), len(self.places))
                keep[sender, reader, place] = 0
                layer = self.graph.readers[reader].layer or 0
                run = self.side.wiring.run(keep=keep, other=self.side.other, before=self.side.clean, first=layer)
                yield [_Cut(sender, reader, place, None)], run.logits[None]
