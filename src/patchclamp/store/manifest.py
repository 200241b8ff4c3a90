"""What a store says of itself: `plan.json` first, `units/*.json` as the units are done, `manifest.json` last.

    plan = Plan(...)                         # of what, by which model, cut how
    refuse_mixing(place, existing_plan(place), plan)    # Mismatch names every difference
    manifest = finish(place, plan)           # when all units are there

None of them has a time or a machine in it: the same call writes the same bytes, however often it was interrupted.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patchclamp.model import Model
from patchclamp.store.errors import Damaged, Mismatch, StoreError, Unfinished
from patchclamp.store.harvest import Width
from patchclamp.store.places import Place
from patchclamp.store.shards import decode, encode
from patchclamp.store.statistics import Moments, merged
from patchclamp.store.units import SPLITS, Cut

SCHEMA = 1
PLAN, MANIFEST = "plan.json", "manifest.json"


@dataclass(frozen=True)
class Plan:
    """All that decides what is in a store, and into how many units it is cut."""

    model: Mapping[str, Any]
    tokenizer: str | None
    corpus: Mapping[str, Any]
    sites: Mapping[str, Width]
    dtype: str
    cut: Cut
    rows: int
    units: int
    schema: int = SCHEMA
    row_order: str = field(default="shuffled in each unit by (seed, unit); training rows before validation rows")

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any], at: str = "this store") -> "Plan":
        """What `to_json` gave; StoreError where another version of the format wrote it."""
        if value.get("schema") != SCHEMA:
            raise StoreError(f"{at} has schema {value.get('schema')}, and this version reads schema {SCHEMA}")
        own = {f.name: value[f.name] for f in dataclasses.fields(cls)}
        sites = {name: Width(tuple(w["shape"]), w["d"], w["dtype"]) for name, w in own["sites"].items()}
        return cls(**(own | {"sites": sites, "cut": Cut(**own["cut"])}))


def describe_model(model: Model) -> dict[str, Any]:
    """Which model it is: class, dtype and a checksum over all its weights; with its name and revision, for people."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.hf.state_dict().items()):
        if isinstance(tensor, Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
            digest.update(flat.numpy().data if len(flat) else b"")
    config = getattr(model.hf, "config", None)
    return {
        "name": model.name,
        "revision": getattr(config, "_commit_hash", None),
        "class": type(model.hf).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": digest.hexdigest(),
    }


def describe_tokenizer(tokenizer: Any) -> str | None:
    """A checksum over what a tokenizer does to a text; None where there is none."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules = {
            name: rule for name, rule in rules.items() if name not in ("truncation", "padding")
        }  # of the last call
    else:
        rules = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def existing_plan(place: Place) -> Plan | None:
    """The plan of the store that is there; StoreError where files of something else are."""
    found = place.read_json(PLAN)
    if found is not None:
        return Plan.from_json(found, place.url)
    others = sorted(n for n in place.sizes() if not n.endswith(".part") and not n.startswith("documents/"))
    if others:
        raise StoreError(f"{place.url} holds files of something else ({', '.join(others[:3])}): choose another folder")
    return None


def refuse_mixing(place: Place, there: Plan, asked: Plan) -> None:
    """`Mismatch` with every difference between what a store holds and what is asked for."""
    differences = _differences(there.to_json(), asked.to_json())
    if differences:
        raise Mismatch(
            f"{place.url} is a store of something else, and nothing in it was changed:\n  " + "\n  ".join(differences)
        )


def _differences(there: Any, here: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Where two plans differ, in words; what a model is called and where it came from decides nothing."""
    if path in (("model", "name"), ("model", "revision")):
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            text
            for key in dict.fromkeys([*there, *here])
            for text in _differences(there.get(key), here.get(key), (*path, key))
        ]
    if there == here:
        return []
    return [f"{' '.join(path)}: the store has {_short(there)}, and {_short(here)} was asked for"]


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}..."
    return "nothing" if value is None else json.dumps(value)


def done_units(place: Place, plan: Plan) -> dict[int, dict[str, Any]]:
    """The records of the units that are done; `Damaged` where a file of one is missing or has another size."""
    sizes = place.sizes()
    found = {}
    for number in range(plan.units):
        name = unit_name(number)
        if name not in sizes:
            continue
        record = place.read_json(name)
        for file, written in record["files"].items():
            if sizes.get(file) != written["bytes"]:
                now = f"has {sizes[file]:,} bytes" if file in sizes else "is missing"
                raise Damaged(
                    f"{place.url}/{file} {now}, and {written['bytes']:,} were written. Delete {name} and "
                    f"{MANIFEST}, and the same call of record makes the unit again."
                )
        found[number] = record
    return found


def unit_name(number: int) -> str:
    """The file that says that a unit is done."""
    return f"units/{number:05d}.json"


def shard_name(folder: str, number: int) -> str:
    """A unit's shard of a site, of its row labels (`rows`), of its windows (`documents`) or its moments (`units`)."""
    return f"{folder.replace(':', '_').replace('/', '_')}/{number:05d}.safetensors"


def finish(place: Place, plan: Plan) -> dict[str, Any]:
    """Merge the units' statistics and write the manifest; `Unfinished` where a unit is not done."""
    done = done_units(place, plan)
    if len(done) < plan.units:
        raise Unfinished(f"{place.url} has {len(done)} of {plan.units} units: the same call of record goes on with it")
    records = [done[number] for number in range(plan.units)]
    moments = [read_tensors(place, shard_name("units", number)) for number in range(plan.units)]
    unexplained = {}
    for site, width in plan.sites.items():
        parts = {s: merged([Moments.from_tensors(f"{site}/{s}", m) for m in moments]) for s in SPLITS}
        tensors = {name: t for s in SPLITS for name, t in parts[s].to_tensors(s).items()}
        place.write(statistics_name(site), encode(tensors))
        whole = merged([Moments.none(width.d), *parts.values()])
        error = sum(record["error"][site] for record in records)
        unexplained[site] = error / max(float(whole.scatter.sum()), torch.finfo(torch.float64).tiny)
    manifest = plan.to_json() | {
        "train_rows": sum(record["train_rows"] for record in records),
        "fraction_of_variance_unexplained": unexplained,
        "unit_records": records,
    }
    place.write_json(MANIFEST, manifest)
    place.tidy()
    return manifest


def statistics_name(site: str) -> str:
    """The file with a site's merged moments."""
    return f"stats/{site.replace(':', '_').replace('/', '_')}.safetensors"


def read_tensors(place: Place, name: str) -> dict[str, Tensor]:
    """The tensors of a small file; `Damaged` where it is missing or not whole."""
    data = place.read(name)
    if data is None:
        raise Damaged(f"{place.url}/{name} is missing")
    return decode(data, f"{place.url}/{name}")
