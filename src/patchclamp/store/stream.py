"""Activations that nothing keeps: made as they are asked for, mixed in a buffer in memory, with a store's face.

    rows = pc.store.stream(model, corpus, "resid_post.3", tokens=1_000_000)        # .d, .rows, .batches(...)
    pairs = pc.store.stream(model, corpus, ["mlp_in.3", "mlp_out.3"])              # batches are tuples

For one training run. Where several read the same activations, `record` makes them once.

The buffer takes in units until it is full, is permuted, gives all but half of its size, and takes in the next. What a
batch holds follows from (seed, epoch) and the row at which it starts: a reader that starts in the middle runs the
model only on what was in the buffer then.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.store.corpus import endless, tokenized, tokenizer_of
from patchclamp.store.harvest import context_of, harvest, sites_of, widths
from patchclamp.store.order import check_batches, permutation, rebatched
from patchclamp.store.statistics import Moments, Statistics, merged
from patchclamp.store.units import Cut, Unit, units

Item = TypeVar("Item")
_ROW = 40  # bits of a row's number below its unit's


@dataclass(frozen=True, eq=False)
class _Source:
    """What makes the rows, and how they are mixed; `kept` are the units of a corpus that ends."""

    model: Model
    corpus: Any
    field: str
    sites: tuple[Site, ...]
    widths: tuple[int, ...]
    cut: Cut
    kept: tuple[Unit, ...] | None
    buffer: int
    batch_tokens: int
    dtype: torch.dtype

    @property
    def rows(self) -> int | None:
        return None if self.kept is None else sum(unit.rows for unit in self.kept)

    def batches(self, size: int, seed: int, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        check_batches(size, epoch, start, self.rows)
        if self.kept is None and epoch:
            raise ValueError(f"epoch={epoch} of a corpus without end: it has one, which goes on")
        return rebatched(self._pieces(size, seed, epoch, start), size)

    def _units(self, seed: int, epoch: int) -> Iterable[Unit]:
        if self.kept is not None:
            return (self.kept[n] for n in permutation(len(self.kept), seed, "units", epoch).tolist())
        documents = tokenized(self.corpus, tokenizer_of(self.model), field=self.field, seed=seed)
        return units(documents, self.cut)

    def _pieces(self, size: int, seed: int, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        inside: dict[int, Unit] = {}  # the units that have rows in the buffer
        ids = torch.empty(0, dtype=torch.long)
        rows: list[Tensor] | None = None  # of `ids`; None as long as nothing of the buffer is wanted
        for turn, (unit, last) in enumerate(_with_end(self._units(seed, epoch))):
            inside[unit.number] = unit
            ids = torch.cat([ids, (unit.number << _ROW) + torch.arange(unit.rows)])
            if rows is not None:
                rows = [torch.cat(pair) for pair in zip(rows, self._harvest(unit), strict=True)]
            if len(ids) < self.buffer and not last:
                continue
            order = permutation(len(ids), seed, "buffer", epoch, turn)
            leaving = len(ids) if last else len(ids) - self.buffer // 2
            staying = order[leaving:]
            if start < leaving:
                rows = self._filled(ids, inside) if rows is None else rows
                for part in order[start:leaving].split(size):
                    yield tuple(x[part].to(self.dtype) for x in rows)
                rows = [x[staying] for x in rows]
            start = max(0, start - leaving)
            ids = ids[staying]
            inside = {number: inside[number] for number in (ids >> _ROW).unique().tolist()}

    def _harvest(self, unit: Unit) -> list[Tensor]:
        found = harvest(self.model, unit, self.sites, seed=self.cut.seed, batch_tokens=self.batch_tokens)
        return [found[str(site)] for site in self.sites]

    def _filled(self, ids: Int[Tensor, "row"], inside: dict[int, Unit]) -> list[Tensor]:
        """The rows of `ids`, made anew."""
        out: list[Tensor] = []
        for number, unit in inside.items():
            at = (ids >> _ROW) == number
            row = ids[at] & ((1 << _ROW) - 1)
            for k, made in enumerate(self._harvest(unit)):
                if k == len(out):
                    out.append(made.new_empty(len(ids), made.shape[1]))
                out[k][at] = made[row]
        return out

    def statistics(self, covariance: bool) -> tuple[Statistics, ...]:
        """Of the first rows, as many as the buffer holds."""
        held: list[tuple[Tensor, ...]] = []
        for batch in self.batches(4096, 0, 0, 0):
            held.append(batch)
            if sum(len(b[0]) for b in held) >= self.buffer:
                break
        return tuple(_statistics(torch.cat(parts), covariance) for parts in zip(*held, strict=True))


def _statistics(x: Tensor, covariance: bool) -> Statistics:
    found = Statistics.of(merged([Moments.of(x)]))
    centred = x.double() - found.mean
    return found.with_covariance(centred.T @ centred / len(x)) if covariance else found


def _with_end(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Each item, and whether it is the last."""
    waiting: list[Item] = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True


@dataclass(frozen=True, eq=False)
class StreamedRows:
    """One site, made on the fly, as `Rows`; `rows` is None where the corpus has no end."""

    source: _Source

    @property
    def d(self) -> int:
        return self.source.widths[0]

    @property
    def rows(self) -> int | None:
        return self.source.rows

    def batches(self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[Float[Tensor, "row d"]]:
        """Mixed batches of `size` rows, from row `start` of the epoch on; the last batch may have fewer."""
        return (batch for (batch,) in self.source.batches(size, seed, epoch, start))

    def statistics(self, *, covariance: bool = False) -> Statistics:
        """An estimate from the first rows, as many as the buffer holds: `count` says how many."""
        return self.source.statistics(covariance)[0]


@dataclass(frozen=True, eq=False)
class StreamedPairs:
    """Several sites at the same tokens, made on the fly, as `PairedRows`."""

    source: _Source

    @property
    def d(self) -> tuple[int, ...]:
        return self.source.widths

    @property
    def rows(self) -> int | None:
        return self.source.rows

    def batches(
        self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[tuple[Float[Tensor, "row d"], ...]]:
        """Mixed batches, a tensor for each site, from row `start` of the epoch on."""
        return self.source.batches(size, seed, epoch, start)

    def statistics(self, *, covariance: bool = False) -> tuple[Statistics, ...]:
        """An estimate for each site from the first rows, as many as the buffer holds."""
        return self.source.statistics(covariance)


def stream(
    model: Model,
    corpus: Any,
    sites: str | Site | Sequence[str | Site],
    *,
    tokens: int | None = None,
    buffer: int = 131_072,
    context: int | None = None,
    batch_tokens: int = 8192,
    skip_first: int = 0,
    field: str = "text",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> "StreamedRows | StreamedPairs":
    """Activations of a corpus, made as they are read: of one site as `Rows`, of a list of sites as `PairedRows`.

    `buffer` is how many rows are mixed in memory. `tokens` is the number of rows in an epoch: None takes the whole
    corpus, or goes on for ever where the corpus writes without end. `seed` draws what a generator of documents writes
    for an epoch that ends; the order is the reader's. Of a corpus that ends, the token ids are held in memory.
    """
    if buffer < 2:
        raise ValueError(f"buffer={buffer}: it mixes at least two rows")
    cut = Cut(context_of(model, context), max(1, buffer // 8), skip_first=skip_first, validation=0.0, seed=seed)
    found = sites_of(model, sites)
    wide = tuple(width.d for width in widths(model, found, model.pad).values())
    kept = None
    if tokens is not None or not endless(corpus):
        kept = tuple(units(tokenized(corpus, tokenizer_of(model), field=field, seed=seed), cut, tokens))
    source = _Source(model, corpus, field, tuple(found), wide, cut, kept, buffer, batch_tokens, dtype)
    return StreamedRows(source) if isinstance(sites, (str, Site)) and len(found) == 1 else StreamedPairs(source)
