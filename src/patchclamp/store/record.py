"""`pc.record`: a corpus through a model, its activations into a store; interrupted, the same call goes on.

store = pc.record(model, "texts/", ["resid_post.3", "mlp_out.3"], "acts/", tokens=2_000_000)
store = pc.record(model, corpus, "resid_post.*", "s3://bucket/acts", dtype="int8", engine="ray", workers=8)
"""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from patchclamp import views
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.store.corpus import endless, tokenized, tokenizer_of
from patchclamp.store.engines import Engine, Job, ModelSource, engine_called
from patchclamp.store.errors import StoreError
from patchclamp.store.harvest import context_of, harvest, sites_of, widths
from patchclamp.store.manifest import (
    MANIFEST,
    PLAN,
    Plan,
    describe_model,
    describe_tokenizer,
    done_units,
    existing_plan,
    finish,
    read_tensors,
    refuse_mixing,
    shard_name,
)
from patchclamp.store.places import Place
from patchclamp.store.reader import Store
from patchclamp.store.reader import open as open_store
from patchclamp.store.shards import DTYPES, encode, row_bytes
from patchclamp.store.units import Cut, Fingerprint, Unit, units

_LABEL_BYTES = 4 + 8 + 4 + 1
_DISK_SPEED = 400 << 20  # bytes a second: what a disk that nobody would call fast takes


@dataclass(frozen=True)
class Bill:
    """What a recording costs: rows, bytes on disk by site and in all, memory of each worker, and seconds (an estimate
    from a trial).
    """

    rows: int
    rows_done: int
    units: int
    documents: int
    by_site: Mapping[str, int]
    memory: int
    seconds: float

    @property
    def bytes(self) -> int:
        """On disk, labels included."""
        return sum(self.by_site.values()) + _LABEL_BYTES * self.rows

    def __str__(self) -> str:
        done = f", {self.rows_done:,} of them done" if self.rows_done else ""
        size = f"{self.rows:,} rows of {self.documents:,} documents in {self.units:,} units{done}"
        sites = ", ".join(f"{site} {_bytes(n)}" for site, n in list(self.by_site.items())[:4])
        more = f" and {len(self.by_site) - 4} more sites" if len(self.by_site) > 4 else ""
        cost = f"{_bytes(self.bytes)} on disk ({sites}{more}), {_bytes(self.memory)} of memory a worker"
        return f"{size}: {cost}, about {_duration(self.seconds)}"


def record(
    model: ModelSource,
    corpus: Any,
    sites: str | Site | Sequence[str | Site],
    out: str | Path,
    *,
    tokens: int | None = None,
    dtype: str = "bfloat16",
    unit_tokens: int | None = None,
    context: int | None = None,
    batch_tokens: int = 8192,
    validation: float = 0.05,
    skip_first: int = 0,
    field: str = "text",
    seed: int = 0,
    engine: str | Engine = "local",
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Store:
    """Store the activations of `sites` for `tokens` tokens of a corpus (None: all), and open the store.

    The bill (rows, bytes, memory, time) is printed before the work begins. A store that is already there is gone on
    with, or given back where it is complete; one of another model, tokenizer, corpus, dtype, or set of sites is
    refused with a `Mismatch` that names the differences, and not touched.

    `model` is a model, or a function that loads one: Ray's workers call it on their own machines. `corpus`: see
    `patchclamp.store.corpus`. `out` is a folder or any URL that fsspec knows; `options` go to fsspec. `dtype` is
    "bfloat16", "float32" or "int8". Documents are cut into windows of `context` tokens (by default what the model
    takes, at most 1,024), of which the first `skip_first` leave no row; `batch_tokens` of them go through the model at
    once. A share of the documents, `validation`, is kept apart. A unit of work is `unit_tokens` rows; the bytes written
    depend on it, and not on who does the units: `engine` is "local", "torchrun" or "ray" (with `workers`).
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: activations are kept as {', '.join(map(repr, DTYPES))}")
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens={tokens}: at least one row")
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens}: at least one token goes through the model at once")
    if tokens is None and endless(corpus):
        raise ValueError(f"{type(corpus).__name__} writes documents without end: say tokens=")
    own = model if isinstance(model, Model) else model()
    chosen = engine_called(engine, workers)
    place = Place.at(out, options)
    cut = Cut(
        context_of(own, context),
        unit_tokens or default_unit(tokens),
        skip_first=skip_first,
        validation=validation,
        seed=seed,
    )

    def prepare() -> tuple[Plan, list[int], str]:
        plan = _planned(own, corpus, sites, place, tokens, dtype, cut, field)
        done = done_units(place, plan)
        left = [number for number in range(plan.units) if number not in done]
        complete = not left and place.read(MANIFEST) is not None
        bill = _bill(own, plan, place, done, batch_tokens, chosen.workers)
        _room(place, bill)
        return plan, ([] if complete else left), "" if complete else str(bill)

    plan, left, bill = chosen.lead(prepare)
    if bill and not quiet:
        chosen.lead(lambda: _say(bill))
    if bill:
        finished = plan.units - len(left)
        with views.progress(f"recording to {place.url}", plan.units) as advance:
            advance(finished)
            for _ in chosen.run(Job(own, model, place, plan, batch_tokens), left):
                advance()
        chosen.lead(lambda: finish(place, plan) and None)
    return open_store(place)


def default_unit(tokens: int | None) -> int:
    """Rows in a unit: 65,536, or fewer where that would make fewer than eight units.

    It does not depend on the model, so that stores of two models over one corpus are cut alike, and can be paired.
    """
    return 65_536 if tokens is None else min(65_536, max(1024, math.ceil(tokens / 8)))


def _planned(
    model: Model, corpus: Any, sites: Any, place: Place, tokens: int | None, dtype: str, cut: Cut, field: str
) -> Plan:
    """The plan of this call; written, with the units' windows, where there is none, compared where there is one."""
    there = existing_plan(place)
    found = widths(model, sites_of(model, sites), model.pad)
    plan = Plan(describe_model(model), describe_tokenizer(model.tokenizer), {}, found, dtype, cut, 0, 0)
    if there is not None:  # what is known before the corpus is read
        refuse_mixing(place, there, replace(plan, corpus=there.corpus, rows=there.rows, units=there.units))
    fingerprint = Fingerprint()
    rows = count = 0
    documents = fingerprint.of(tokenized(corpus, tokenizer_of(model), field=field, seed=cut.seed))
    for unit in units(documents, cut, tokens):
        if there is None:
            place.write(shard_name("documents", unit.number), encode(unit.to_tensors()))
        rows, count = rows + unit.rows, count + 1
    plan = replace(plan, corpus=fingerprint.described(), rows=rows, units=count)
    if there is not None:
        refuse_mixing(place, there, plan)
    else:
        place.write_json(PLAN, plan.to_json())
    return plan


def _bill(
    model: Model, plan: Plan, place: Place, done: Mapping[int, Mapping[str, Any]], batch_tokens: int, workers: int
) -> Bill:
    by_site = {site: plan.rows * row_bytes(width.d, plan.dtype) for site, width in plan.sites.items()}
    rows_done = sum(record["rows"] for record in done.values())
    left = plan.rows - rows_done
    number = next((n for n in range(plan.units) if n not in done), None)
    seconds = 0.0
    if number is not None:
        unit = Unit.from_tensors(read_tensors(place, shard_name("documents", number)))
        trial = _first_rows(unit, batch_tokens)
        began = time.perf_counter()
        harvest(model, trial, sites_of(model, list(plan.sites)), seed=0, batch_tokens=batch_tokens)
        seconds = (time.perf_counter() - began) / trial.rows * left / workers
        seconds = max(seconds, sum(by_site.values()) * left / plan.rows / _DISK_SPEED / workers)
    size = min(plan.rows, plan.cut.unit_tokens + plan.cut.context)
    item = {name: torch.empty(0, dtype=getattr(torch, w.dtype)).element_size() for name, w in plan.sites.items()}
    memory = 2 * size * sum(width.d * item[name] for name, width in plan.sites.items())  # one is written, one is made
    documents = int(plan.corpus["documents"])
    return Bill(plan.rows, rows_done, plan.units, documents, by_site, memory, seconds)


def _first_rows(unit: Unit, batch_tokens: int) -> Unit:
    """The windows of a unit that make about one batch."""
    windows = max(1, int((unit.start[1:] <= batch_tokens).sum()))
    end = int(unit.start[windows])
    rows = min(unit.rows, end - windows * unit.skip_first)
    parts = {name: getattr(unit, name)[:windows] for name in ("document", "offset", "split")}
    return replace(unit, rows=rows, token=unit.token[:end], start=unit.start[: windows + 1], **parts)


def _room(place: Place, bill: Bill) -> None:
    if place.folder is None:
        return
    needed = bill.bytes * (bill.rows - bill.rows_done) // bill.rows
    free = shutil.disk_usage(place.folder).free
    if needed > free:
        raise StoreError(
            f"{place.url} has {_bytes(free)} of room, and {_bytes(needed)} are needed ({bill}): "
            "fewer tokens or sites, or dtype='int8', take less"
        )


def _say(bill: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(bill, markup=False, highlight=False, soft_wrap=True)


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
