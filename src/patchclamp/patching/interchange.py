"""Which heads are needed, and which suffice: interchange in both directions, with permutation p-values.

    table = interchange(model, task)                          # dims (layer, head); every head by default
    table["necessity"], table["sufficiency"]                  # shares of the behaviour; p and Holm's correction beside

Necessity: by how much the behaviour falls when a head has its activation from the corrupted prompt. Sufficiency: how
much of it comes back when a head of the corrupted run has its clean activation. The two need not agree: backups hide
needs, and heads that work together suffice for nothing alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from patchclamp import metrics
from patchclamp.interventions import ablate, patch
from patchclamp.model import Model
from patchclamp.patching.pairs import Pairs
from patchclamp.positions import Position
from patchclamp.sites import KINDS, Site
from patchclamp.tasks import Task
from patchclamp.views import track

EFFECTS = ("necessity", "sufficiency")


def interchange(
    model: Model,
    task: Task,
    sites: "str | Site | Sequence[str | Site]" = "z.*.*",
    *,
    pos: Position = None,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    permutations: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Both effects of each site, 0 none and 1 all of the behaviour, with p-values and a control of each.

    Dims (layer, and head where sites are heads). `necessity_p` is two-sided, of sign flips over prompts: were the head
    of no use, its effect on a prompt would as well have the other sign. `necessity_holm` is corrected for the number of
    sites. `necessity_control` is the effect of the head's activation from another prompt of the same side, which moves
    what differs between prompts anyhow. So too for sufficiency.
    """
    if len(task) < 6:
        raise ValueError(
            f"{len(task)} prompts have {2 ** len(task)} sign flips: give 6 at least, for a p-value below .05"
        )
    wanted = model.sites(sites)
    noise, denoise = (Pairs.of(model, task, metric=metric, direction=way) for way in ("noise", "denoise"))
    whole = float((noise.base_values - denoise.base_values).mean())
    if abs(whole) < 1e-9:
        raise ValueError(
            f"{task.name} has the same metric on clean and corrupted prompts: there is no behaviour to explain"
        )
    generator = torch.Generator().manual_seed(seed)
    signs = (torch.randint(2, (permutations, len(task)), generator=generator) * 2 - 1).double().numpy()
    columns: dict[str, list[float]] = {}
    for site in track(wanted, "interchanging"):
        for name, pairs, direction in (("necessity", noise, -1), ("sufficiency", denoise, 1)):
            source = pairs.activations(site.whole)[1]
            before = pairs.base_values

            def gains(do, before=before, pairs=pairs, direction=direction) -> np.ndarray:
                return (direction * (pairs.values(do) - before) / whole).double().cpu().numpy()

            unit = source if site.unit is None else source.select(site.unit_axis or 0, site.unit)
            effect = gains([patch(site, unit, pos=pos)])
            control = gains([ablate(site, "resample", pos=pos, seed=seed)])
            flipped = np.abs((signs * effect).mean(1))
            p = (1 + (flipped >= abs(effect.mean()) - 1e-12).sum()) / (1 + permutations)
            for key, value in ((name, effect.mean()), (f"{name}_p", p), (f"{name}_control", control.mean())):
                columns.setdefault(key, []).append(float(value))
    for name in EFFECTS:
        columns[f"{name}_holm"] = list(holm(np.array(columns[f"{name}_p"])))
    return _table(model, task, wanted, columns)


def holm(p: np.ndarray) -> np.ndarray:
    """P-values corrected for their number, by Holm's step-down rule.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _table(model: Model, task: Task, sites: list[Site], columns: dict[str, list[float]]) -> xr.Dataset:
    layers = sorted({site.layer for site in sites if site.layer is not None})
    units = sorted({site.unit for site in sites if site.unit is not None})
    kind = sites[0].kind
    if any(site.kind != kind for site in sites):
        raise ValueError("sites of several kinds do not share a table; ask for one kind at a time")
    axes = [("layer", layers), *([(KINDS[kind].unit or "unit", units)] if units else [])]
    found = {}
    for name, values in columns.items():
        grid = np.full([len(labels) for _, labels in axes], np.nan)
        for site, value in zip(sites, values, strict=True):
            place = (layers.index(site.layer or 0), *([units.index(site.unit)] if site.unit is not None else []))
            grid[place] = value
        found[name] = ([dim for dim, _ in axes], grid)
    return xr.Dataset(found, coords=dict(axes), attrs={"model": model.name, "task": task.name, "prompts": len(task)})
