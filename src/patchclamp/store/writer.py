"""A unit's rows as files: labels, a shard for each site, moments, and last the record which says that they are there.

    record = write_unit(place, plan, unit, harvest(model, unit, sites, ...))

All files of a unit are whole before its record is written, so that a unit counts as done only when it is; to write one
again writes the same bytes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.store.errors import StoreError
from patchclamp.store.manifest import Plan, shard_name, unit_name
from patchclamp.store.places import Place
from patchclamp.store.shards import compress, encode, expand
from patchclamp.store.statistics import Moments
from patchclamp.store.units import SPLITS, Unit

_PIECE = 4096


def write_unit(place: Place, plan: Plan, unit: Unit, rows: Mapping[str, Float[Tensor, "row d"]]) -> dict[str, Any]:
    """Write what a unit gave, and its record; StoreError where an activation is not finite, or the disk is full."""
    labels = unit.labels()[unit.order(plan.cut.seed)]
    train = int((labels.split == 0).sum())
    files = {}
    moments: dict[str, Tensor] = {}
    error = {}

    def put(folder: str, tensors: Mapping[str, Tensor]) -> None:
        name = shard_name(folder, unit.number)
        files[name] = place.write(name, encode(tensors))

    put("rows", vars(labels))
    for site in plan.sites:
        tensors = compress(_finite(rows[site], site, unit), plan.dtype)
        error[site] = _error(rows[site], tensors)
        for split, part in zip(SPLITS, (slice(0, train), slice(train, unit.rows)), strict=True):
            moments |= _moments(tensors, part).to_tensors(f"{site}/{split}")
        put(site, tensors)
    put("units", moments)
    record = {
        "unit": unit.number,
        "rows": unit.rows,
        "train_rows": train,
        "documents": [int(unit.document[0]), int(unit.document[-1])],
        "files": files,
        "error": error,
    }
    place.write_json(unit_name(unit.number), record)
    return record


def _finite(rows: Tensor, site: str, unit: Unit) -> Tensor:
    bad = sum(int((~part.isfinite()).any(1).sum()) for part in rows.split(_PIECE))
    if bad:
        raise StoreError(f"{site} is not finite in {bad} of {len(rows)} rows of unit {unit.number}: nothing was stored")
    return rows


def _error(rows: Tensor, tensors: Mapping[str, Tensor]) -> float:
    """The summed squared difference between what the model gave and what a reader will get."""
    total = 0.0
    for first in range(0, len(rows), _PIECE):
        part = slice(first, min(first + _PIECE, len(rows)))
        total += float((rows[part].float() - expand(tensors, part, torch.float32)).double().square().sum())
    return total


def _moments(tensors: Mapping[str, Tensor], part: slice) -> Moments:
    """Of the rows as they are stored."""
    if part.start == part.stop:
        return Moments.none(tensors["activations"].shape[1])
    return Moments.of(expand(tensors, part, torch.float32))
