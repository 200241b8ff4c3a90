"""Reading a store: sites as `Rows`, shuffled, from the middle of an epoch if need be; pairs of sites; labels; contexts.

    store = pc.store.open("acts/")                                # or "s3://bucket/acts"
    rows = store["resid_post.3"]                                  # .d, .rows, .batches(size, seed=, epoch=, start=)
    pairs = store["mlp_in.3", "mlp_out.3"]                        # batches are tuples of tensors, rows in step
    both = pc.store.paired(store["resid_post.3"], other["resid_post.3"])     # two models over one corpus
    rows.split("train")

An epoch permutes the shards, then the rows within each window of a few shards. Each shard was shuffled when it was
written. The order follows from (seed, epoch), the store and `window` alone.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.sites import Site, from_transformer_lens
from patchclamp.store.errors import Damaged, Mismatch, StoreError, Unfinished
from patchclamp.store.manifest import (
    MANIFEST,
    PLAN,
    Plan,
    read_tensors,
    shard_name,
    statistics_name,
)
from patchclamp.store.order import check_batches, permutation, rebatched
from patchclamp.store.places import CACHE_BYTES, Place
from patchclamp.store.shards import expand, mapped, read_ahead
from patchclamp.store.statistics import Moments, Statistics, merged
from patchclamp.store.units import SPLITS, Labels, Unit


@dataclass(frozen=True, eq=False)
class Store:
    """A finished store: `sites`, `rows`, `store[site]`; rows come as `dtype` on `device`."""

    place: Place
    plan: Plan
    manifest: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    window: int = 8

    @property
    def sites(self) -> list[str]:
        """The sites that it holds."""
        return list(self.plan.sites)

    @property
    def rows(self) -> int:
        """Rows of each site."""
        return self.plan.rows

    @property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """What was written of each unit: its rows, files and checksums."""
        return self.manifest["unit_records"]

    def __contains__(self, site: object) -> bool:
        return str(site) in self.plan.sites

    @overload
    def __getitem__(self, site: "str | Site") -> "StoredRows": ...
    @overload
    def __getitem__(self, site: "tuple[str | Site, ...] | list[str | Site]") -> "StoredPairs": ...
    def __getitem__(self, site: Any) -> Any:
        if isinstance(site, (tuple, list)):
            return StoredPairs(tuple(self[one] for one in site))
        name = from_transformer_lens(str(site)) or str(site)
        if name not in self:
            near = difflib.get_close_matches(name, self.sites, 1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"{self.place.url} has no {str(site)!r}{hint} It has {', '.join(self.sites)}.")
        return StoredRows(self, name)

    def __repr__(self) -> str:
        sites = ", ".join(f"{name} [{width.d}]" for name, width in self.plan.sites.items())
        return f"Store({self.place.url}: {self.rows:,} rows of {sites}, {self.plan.dtype}, {self.plan.model['name']})"

    def document(self, number: int) -> Int[Tensor, "pos"]:
        """The token ids of a document, as far as the store's model has read it: the context of its rows."""
        found = []
        for record in self.records:
            first, last = record["documents"]
            if first <= number <= last:
                unit = Unit.from_tensors(read_tensors(self.place, shard_name("documents", record["unit"])))
                windows = (unit.document == number).nonzero().flatten().tolist()
                found += [(int(unit.offset[w]), unit.token[unit.start[w] : unit.start[w + 1]]) for w in windows]
        if not found:
            raise KeyError(f"{self.place.url} has no row of document {number}")
        return torch.cat([ids for _, ids in sorted(found, key=lambda item: item[0])]).long()

    def verify(self) -> None:
        """Read every byte, and raise `Damaged` where a checksum is not the one that was written."""
        for record in self.records:
            for name, written in record["files"].items():
                with self.place.file(name, written["sha256"]).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != written["sha256"]:
                    was = written["sha256"]
                    raise Damaged(f"{self.place.url}/{name} has sha256 {found[:12]}..., and {was[:12]}... was written")

    def _tensors(self, folder: str, number: int) -> dict[str, Tensor]:
        """A unit's shard, mapped into memory."""
        return mapped(self._file(folder, number))

    def _file(self, folder: str, number: int) -> Path:
        name = shard_name(folder, number)
        return self.place.file(name, self.records[number]["files"][name]["sha256"])


def open(
    url: str | Path | Place,
    *,
    options: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    window: int = 8,
    cache: str | Path | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Store:
    """Open a finished store; batches come as `dtype` on `device`.

    `window` is how many shards are shuffled together. Of a store at a URL, whole shards are kept in the folder `cache`
    (by default ~/.cache/patchclamp/store), at most `cache_bytes` of them. `Unfinished` where the recording was
    interrupted, `Damaged` where a file is missing or has another size than was written.
    """
    if window < 1:
        raise ValueError(f"window={window}: at least one shard")
    place = Place.at(url, options).cached(cache, cache_bytes)
    manifest = place.read_json(MANIFEST)
    if manifest is None:
        there = place.read_json(PLAN)
        if there is None:
            raise StoreError(f"there is no store at {place.url}: it has no {MANIFEST}")
        done = sum(name.startswith("units/") and name.endswith(".json") for name in place.sizes("units"))
        raise Unfinished(
            f"{place.url} has {done} of {there['units']} units: the same call of record, with the same out, goes on"
        )
    plan = Plan.from_json(manifest, place.url)
    sizes = place.sizes()
    for record in manifest["unit_records"]:
        for name, written in record["files"].items():
            if sizes.get(name) != written["bytes"]:
                found = f"has {sizes[name]:,} bytes" if name in sizes else "is missing"
                raise Damaged(f"{place.url}/{name} {found}, and {written['bytes']:,} were written")
    return Store(place, plan, manifest, dtype, device, window)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """One site of a store, all of it or one split, as `Rows`."""

    store: Store
    site: str
    part: str | None = None

    def __repr__(self) -> str:
        return f"StoredRows({self.site}{'' if self.part is None else ' ' + self.part}: {self.rows:,} rows of {self.d})"

    @property
    def d(self) -> int:
        return self.store.plan.sites[self.site].d

    @property
    def rows(self) -> int:
        return sum(end - begin for begin, end in self._spans)

    @property
    def fraction_of_variance_unexplained(self) -> float:
        """What storing it in the store's dtype has lost of the variance."""
        return self.store.manifest["fraction_of_variance_unexplained"][self.site]

    def split(self, name: str) -> "StoredRows":
        """The rows of "train" or of "validation" alone; documents with the same content are on one side."""
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}: say {' or '.join(map(repr, SPLITS))}")
        chosen = replace(self, part=name)
        if chosen.rows == 0:
            raise StoreError(
                f"{self.store.place.url} has no rows for {name}: it was recorded with "
                f"validation={self.store.plan.cut.validation}"
            )
        return chosen

    def batches(self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[Float[Tensor, "row d"]]:
        """Shuffled batches of `size` rows, from row `start` of the epoch on; the last batch may have fewer."""
        return (batch for (batch,) in _shuffled((self,), size, seed, epoch, start))

    def labelled(self, size: int) -> Iterator[tuple[Labels, Float[Tensor, "row d"]]]:
        """Every row once, with its labels, in the order in which it is stored; batches end where a shard ends."""
        for number, (begin, end) in enumerate(self._spans):
            tensors, labels = self.store._tensors(self.site, number), self._labels(number)
            for first in range(begin, end, size):
                part = slice(first, min(first + size, end))
                yield labels[part], expand(tensors, part, self.store.dtype).to(self.store.device)

    def statistics(self, *, covariance: bool = False) -> Statistics:
        """Count, mean, variance and norms, as they were summed up when the rows were written.

        With `covariance`, the rows are read once: sums in float32 in pieces of 4,096 rows, added up in float64.
        """
        tensors = read_tensors(self.store.place, statistics_name(self.site))
        moments = {name: Moments.from_tensors(name, tensors) for name in SPLITS}
        found = Statistics.of(merged(list(moments.values())) if self.part is None else moments[self.part])
        if not covariance:
            return found
        total = torch.zeros(self.d, self.d, dtype=torch.float64)
        mean = found.mean.float()
        for number, (begin, end) in enumerate(self._spans):
            tensors = self.store._tensors(self.site, number)
            for first in range(begin, end, 4096):
                x = expand(tensors, slice(first, min(first + 4096, end)), torch.float32) - mean
                total += (x.T @ x).double()
        return found.with_covariance(total / found.count)

    def _labels(self, number: int) -> Labels:
        return Labels(**self.store._tensors("rows", number))

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        """Where in each shard the rows are: training rows stand before validation rows."""
        counts = [(record["train_rows"], record["rows"]) for record in self.store.records]
        spans = {None: [(0, n) for _, n in counts], "train": [(0, t) for t, _ in counts], "validation": counts}
        return spans[self.part]

    def _open(self, number: int) -> dict[str, Tensor]:
        path = self.store._file(self.site, number)
        read_ahead(path)
        return mapped(path)


@dataclass(frozen=True, eq=False)
class StoredPairs:
    """Several sites at the same tokens, as `PairedRows`: of one store, or of several whose labels are the same."""

    members: tuple[StoredRows, ...]

    @property
    def d(self) -> tuple[int, ...]:
        return tuple(member.d for member in self.members)

    @property
    def rows(self) -> int:
        return self.members[0].rows

    def split(self, name: str) -> "StoredPairs":
        """The rows of "train" or of "validation" alone."""
        return StoredPairs(tuple(member.split(name) for member in self.members))

    def batches(
        self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[tuple[Float[Tensor, "row d"], ...]]:
        """Shuffled batches, a tensor for each site, in the order in which each site alone would come."""
        return _shuffled(self.members, size, seed, epoch, start)

    def statistics(self, *, covariance: bool = False) -> tuple[Statistics, ...]:
        """Statistics of each site."""
        return tuple(member.statistics(covariance=covariance) for member in self.members)


def paired(*members: StoredRows) -> StoredPairs:
    """Sites of several stores at the same tokens; `Mismatch` unless the labels of their rows are the same.

    Two models over one corpus, recorded with the same seed, context and unit size, are in step.
    """
    if not members:
        raise ValueError("paired takes the rows of two sites or more")
    first = members[0]
    for other in members[1:]:
        if first.part != other.part:
            raise Mismatch(f"{first!r} and {other!r} are not of one split")
        for number in range(max(len(first.store.records), len(other.store.records))):
            labels = [_label_file(member.store, number) for member in (first, other)]
            if labels[0] != labels[1]:
                raise Mismatch(_out_of_step(first, other, number))
    return StoredPairs(members)


def _label_file(store: Store, number: int) -> str | None:
    """The checksum of a unit's labels: labels that are equal have equal files."""
    if number >= len(store.records):
        return None
    return store.records[number]["files"][shard_name("rows", number)]["sha256"]


def _out_of_step(first: StoredRows, other: StoredRows, number: int) -> str:
    here, there = first.store.plan.to_json(), other.store.plan.to_json()
    differ = [name for name in ("tokenizer", "corpus", "cut", "rows") if here[name] != there[name]]
    return (
        f"{first.store.place.url} and {other.store.place.url} have other rows in unit {number}: they differ in "
        f"{', '.join(differ) or 'their labels'}. Pairs need one tokenizer, corpus, seed, context and unit size."
    )


def _shuffled(
    members: Sequence[StoredRows], size: int, seed: int, epoch: int, start: int
) -> Iterator[tuple[Tensor, ...]]:
    check_batches(size, epoch, start, members[0].rows)
    return rebatched(_pieces(members, size, seed, epoch, start), size)


def _pieces(
    members: Sequence[StoredRows], size: int, seed: int, epoch: int, start: int
) -> Iterator[tuple[Tensor, ...]]:
    """Rows in the order of the epoch, cut at whole batches and where a window of shards ends."""
    spans = members[0]._spans
    shards = [n for n in permutation(len(spans), seed, "shards", epoch).tolist() if spans[n][0] < spans[n][1]]
    per_window = members[0].store.window
    windows = [shards[first : first + per_window] for first in range(0, len(shards), per_window)]
    counts = [sum(spans[n][1] - spans[n][0] for n in window) for window in windows]
    done = start
    with ThreadPoolExecutor(1) as ahead:
        coming = None
        for number, (window, count) in enumerate(zip(windows, counts, strict=True)):
            if start >= count:
                start -= count
                continue
            opened = coming.result() if coming is not None else _opened(members, window)
            coming = ahead.submit(_opened, members, windows[number + 1]) if number + 1 < len(windows) else None
            order = permutation(count, seed, "window", epoch, number)
            bounds = torch.tensor([spans[n][1] - spans[n][0] for n in window]).cumsum(0)
            begins = torch.tensor([spans[n][0] for n in window])
            while start < count:
                chosen = order[start : start + size - done % size]
                shard = torch.searchsorted(bounds, chosen, right=True)
                row = chosen - (bounds[shard] - bounds.diff(prepend=torch.zeros(1, dtype=torch.long))[shard])
                row += begins[shard]
                yield tuple(_take(member, files, shard, row) for member, files in zip(members, opened, strict=True))
                start, done = start + len(chosen), done + len(chosen)
            start = 0


def _opened(members: Sequence[StoredRows], window: Sequence[int]) -> list[list[dict[str, Tensor]]]:
    return [[member._open(number) for number in window] for member in members]


def _take(member: StoredRows, files: Sequence[Mapping[str, Tensor]], shard: Tensor, row: Tensor) -> Tensor:
    """Rows `row` of the shards `shard`, as the store's readers want them."""
    store = member.store
    found = torch.empty(len(row), member.d, dtype=store.dtype)
    for number, tensors in enumerate(files):
        at = (shard == number).nonzero().squeeze(1)
        if len(at):
            found[at] = expand(tensors, row[at], store.dtype)
    return found.to(store.device)
