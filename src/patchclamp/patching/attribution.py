"""Attribution patching: the table of a sweep to first order, from two forward passes and one backward.

The effect of putting x' in place of x is about (x' - x) . d metric / d x, taken in the run that is patched (Nanda
2023; Syed et al. 2023, arXiv:2310.10348). It is exact where the metric is linear in the site, and misleads where it
saturates: attention that is all on one token, a norm that rescales. Compare with `sweep` before believing it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from patchclamp import metrics
from patchclamp.model import Model
from patchclamp.patching.corruption import Corruption
from patchclamp.patching.sweep import Direction, check_fits, describe, expand, plan, table, two_sides
from patchclamp.sites import Site
from patchclamp.tasks import Task


def attribution(
    model: Model,
    task: Task,
    sites: "str | Site | Sequence[str | Site]",
    *,
    positions: Any = "each",
    metric: "str | metrics.Metric" = metrics.logit_difference,
    normalise: bool = True,
    direction: Direction = "denoise",
    corruption: Corruption = "resample",
    seed: int = 0,
) -> xr.DataArray:
    """First-order estimate of `sweep(...)` with the same arguments: the same axes, the same units."""
    score = metrics.by_name(metric) if isinstance(metric, str) else metric
    wanted = expand(model, sites)
    check_fits(model, task)
    clean_ids, corrupt_ids, do = two_sides(model, task, corruption, seed)
    wholes = list(dict.fromkeys(site.whole for site in wanted))
    base_ids, source_ids = (corrupt_ids, clean_ids) if direction == "denoise" else (clean_ids, corrupt_ids)
    base_do, source_do = (do, []) if direction == "denoise" else ([], do)

    def value(logits: torch.Tensor) -> torch.Tensor:
        return score(task.at_answer(logits), task).mean()

    source = model.run(source_ids, record=wholes, attention_mask=task.mask, do=source_do)
    base = model.run(base_ids, record=wholes, attention_mask=task.mask, do=base_do, grad=value)
    assert base.grad is not None and base.logits is not None and source.logits is not None
    products = {}
    for whole in wholes:
        product = (source[whole] - base[whole]) * base.grad[whole]
        product = product.nan_to_num(0.0)  # masked scores are -inf in both runs
        product = product.movedim(whole.pos_axis, 1)  # [prompt, pos, (unit), ...]
        keep = 3 if whole.unit_axis is not None else 2
        products[whole] = product.flatten(keep).sum(-1) if product.ndim > keep else product
    axes, patches = plan(task, wanted, positions, first=0)
    values = np.zeros([len(labels) for _, labels in axes])
    for item in patches:
        product = products[item.site.whole]
        if product.ndim > 2:
            product = product.sum(2) if item.site.unit is None else product[:, :, item.site.unit]
        if item.columns is None:
            values[item.cell] = float(product[task.mask.to(product.device)].sum())
        else:
            rows, slots = (item.columns >= 0).nonzero(as_tuple=True)
            values[item.cell] = float(product[rows, item.columns[rows, slots]].sum())
    base_value, source_value = float(value(base.logits)), float(value(source.logits))
    clean, corrupted = (source_value, base_value) if direction == "denoise" else (base_value, source_value)
    facts = describe(model, task, sites, method="attribution", direction=direction, corruption=corruption)
    return table(values + base_value, axes, score, facts, clean=clean, corrupted=corrupted, normalise=normalise)
