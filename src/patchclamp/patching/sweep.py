"""Exact activation patching over many sites: what does each of them, put in from the other run, bring back?

    effects = pc.patching.sweep(model, task, "resid_pre.*", positions="each")     # DataArray (layer, pos)
    effects = pc.patching.sweep(model, task, "z.*.*", positions="all")            # DataArray (layer, head)

Denoising puts clean activations into the corrupted run, noising corrupted ones into the clean run (Meng et al. 2022,
arXiv:2202.05262; Heimersheim and Nanda 2024, arXiv:2404.15255). Normalised, 0 is the corrupted run's metric and 1 the
clean run's, in both directions. Every number is that of one whole forward pass with one patch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import Intervention, patch
from patchclamp.model import Model
from patchclamp.patching.corruption import Corruption, corrupted_embedding
from patchclamp.patching.restart import Restart
from patchclamp.sites import KINDS, Site, SiteError
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress

Direction = Literal["denoise", "noise"]
_PARTS = 3  # a group of positions ends where this share of its columns would be computed for nothing
_TOKENS_A_CALL = 256  # below that a forward pass costs more in calls than in arithmetic


@dataclass(frozen=True)
class Patch:
    """One entry of a sweep: a site, the columns that are patched (None: all), and the first that can differ."""

    site: Site
    columns: Tensor | None  # [prompt, n], -1 where a prompt has fewer
    cell: tuple[int, ...]
    first: int


def sweep(
    model: Model,
    task: Task,
    sites: "str | Site | Sequence[str | Site]",
    *,
    positions: Any = "each",
    metric: "str | metrics.Metric" = metrics.logit_difference,
    normalise: bool = True,
    direction: Direction = "denoise",
    corruption: Corruption = "resample",
    memory: float = 1.0,
    seed: int = 0,
) -> xr.DataArray:
    """The metric (mean over prompts) after patching each site, one at a time; exact.

    `positions` is "each" (a dimension `pos`), "labels" (the task's roles, a dimension `role`), "all" (every position at
    once), or a position as in interventions. `corruption` replaces the task's corrupted prompts by the clean ones with
    noise ("gaussian", three standard deviations of the embeddings), the "mean" or "zero" at the embeddings of the
    tokens that differ. `memory` bounds the batch, in GiB.
    """
    if direction not in ("denoise", "noise"):
        raise ValueError(
            f"direction={direction!r}: 'denoise' patches clean into corrupted, 'noise' corrupted into clean"
        )
    score = metrics.by_name(metric) if isinstance(metric, str) else metric
    wanted = expand(model, sites)
    check_fits(model, task)
    clean, corrupt, do = two_sides(model, task, corruption, seed)
    base_ids, source_ids = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    base_do, source_do = (do, []) if direction == "denoise" else ([], do)
    wholes = list(dict.fromkeys(site.whole for site in wanted))
    source = Restart(model, source_ids, task.mask, task.positions, do=source_do, record=wholes)
    base = Restart(model, base_ids, task.mask, task.positions, do=base_do)
    axes, patches = plan(task, wanted, positions, first=_first_difference(task) if base.causal else 0)
    values = np.full([len(labels) for _, labels in axes], np.nan)
    base_value = float(score(base.logits, task).mean())
    source_value = float(score(source.logits, task).mean())
    named = _named_tokens(task) if score in metrics.OF_NAMED_ANSWERS else None
    asked = task if named is None or not base.only(named) else _Renumbered.of(task, named)
    groups = _groups(base, patches, memory, len(task))
    with progress(f"patching {len(patches)} places", len(patches)) as advance:
        for group in groups:
            logits = _run_group(base, source, group)
            for index, item in enumerate(group):
                values[item.cell] = float(score(logits[:, index], asked).mean())
            advance(len(group))
    clean_value, corrupt_value = (source_value, base_value) if direction == "denoise" else (base_value, source_value)
    values[np.isnan(values)] = base_value  # positions where both runs are still the same: the patch changes nothing
    facts = describe(model, task, sites, method="exact", direction=direction, corruption=corruption)
    return table(values, axes, score, facts, clean=clean_value, corrupted=corrupt_value, normalise=normalise)


def _named_tokens(task: Task) -> Int[Tensor, "token"]:
    ids = torch.cat([task.answers.flatten(), task.wrong.flatten()]).unique()
    return ids[ids >= 0]


@dataclass(frozen=True)
class _Renumbered:
    """A task's answers as columns of the logits of the named tokens alone."""

    answers: Tensor
    wrong: Tensor

    @classmethod
    def of(cls, task: Task, tokens: Tensor) -> "_Renumbered":
        return cls(*(torch.where(x < 0, -1, torch.searchsorted(tokens, x)) for x in (task.answers, task.wrong)))


def describe(model: Model, task: Task, sites: Any, **settings: str) -> dict[str, Any]:
    """What one must know to read a table of effects."""
    names = [sites] if isinstance(sites, (str, Site)) else list(sites)
    return {
        "model": model.name,
        "task": task.name,
        "sites": ", ".join(str(site) for site in names),
        "prompts": len(task),
        "certificate": int(model.certificate.holds),
        **settings,
    }


def table(
    values: np.ndarray,
    axes: list[tuple[str, list]],
    score: metrics.Metric,
    facts: dict[str, Any],
    *,
    clean: float,
    corrupted: float,
    normalise: bool,
) -> xr.DataArray:
    """Effects with named axes; `attrs` hold the two ends of the scale and the facts."""
    if normalise:
        values = metrics.normalise(torch.as_tensor(values), clean, corrupted).numpy()
    attrs = {**facts, "clean": clean, "corrupted": corrupted, "normalised": int(normalise)}
    name = getattr(score, "__name__", "metric")
    return xr.DataArray(values, dims=[dim for dim, _ in axes], coords=dict(axes), name=name, attrs=attrs)


# ── what is patched ───────────────────────────────────────────────────────────────────────────────────────────────────


def expand(model: Model, sites: "str | Site | Sequence[str | Site]") -> list[Site]:
    patterns = [sites] if isinstance(sites, (str, Site)) else list(sites)
    found = [site for pattern in patterns for site in model.sites(pattern)]
    for site in found:
        if site.kind in ("module", "logits", "final_norm", "final_norm_scale", "expert_index") or site.stack:
            raise SiteError(f"{site} is not a site of the model's blocks, over which a sweep goes")
    return found


def check_fits(model: Model, task: Task) -> None:
    if model.anatomy.head != "tokens":
        raise ValueError(f"{model.name} has no logits for tokens, which a task's metric is a function of")
    top = int(max(side.max() for side in (task.clean, task.corrupt, task.answers, task.wrong)))
    size = len(model.embeddings.weight)
    if top >= size:
        raise ValueError(f"task {task.name} has token id {top}, but {model.name} has {size} tokens")


def two_sides(model: Model, task: Task, corruption: Corruption, seed: int) -> tuple[Tensor, Tensor, list[Intervention]]:
    if corruption == "resample":
        return task.clean, task.corrupt, []
    site, values = corrupted_embedding(model, task, corruption, seed=seed)
    return task.clean, task.clean, [patch(site, values)]


def _first_difference(task: Task) -> int:
    differs = (task.clean != task.corrupt) & task.mask
    return int(differs.any(0).nonzero()[0])


def plan(task: Task, sites: list[Site], positions: Any, *, first: int) -> tuple[list[tuple[str, list]], list[Patch]]:
    """The table's axes and the patches that fill it; positions before the first difference are left out."""
    layers = sorted({site.layer for site in sites if site.layer is not None})
    kinds = list(dict.fromkeys(site.kind for site in sites))
    units = sorted({site.unit for site in sites if site.unit is not None})
    axes: list[tuple[str, list]] = []
    if len(kinds) > 1:
        axes.append(("kind", kinds))
    if layers:
        axes.append(("layer", layers))
    if units:
        axes.append((KINDS[kinds[0]].unit or "unit", units))
    choices = _choices(task, positions)
    if choices is not None:
        axes.append(choices[0])
    patches = []
    for site in sites:
        cell = [kinds.index(site.kind)] if len(kinds) > 1 else []
        cell += [layers.index(site.layer)] if layers and site.layer is not None else []
        cell += [units.index(site.unit)] if units and site.unit is not None else []
        for place, columns in enumerate([_columns(task, positions)] if choices is None else choices[1]):
            here = tuple(cell) if choices is None else (*cell, place)
            if columns is None or bool((columns >= first).any()):
                least = first if columns is None else int(columns[columns >= first].min())
                patches.append(Patch(site, columns, here, least))
    return axes, patches


def _choices(task: Task, positions: Any) -> tuple[tuple[str, list], list[Tensor]] | None:
    """The position axis and the columns of each of its entries; None where positions are one choice for all."""
    if isinstance(positions, str) and positions == "each":
        width = task.clean.shape[1]
        columns = [torch.where(task.mask[:, p], p, -1)[:, None] for p in range(width)]
        return ("pos", list(range(width))), columns
    if isinstance(positions, str) and positions == "labels":
        return ("role", list(task.labels)), [where[:, None].cpu() for where in task.labels.values()]
    return None


def _columns(task: Task, positions: Any) -> Tensor | None:
    from patchclamp.positions import Frame

    if isinstance(positions, str) and positions in task.labels:
        return task.labels[positions][:, None].cpu()
    return Frame.of_mask(task.mask).columns(positions)


# ── running it ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _begins(site: Site) -> tuple[int, Site | None]:
    """The block that a patch of this site restarts from, and the site that is written (None: the block's input)."""
    if site.kind == "resid_pre":
        return site.layer or 0, None
    if site.kind == "resid_post":
        return (site.layer or 0) + 1, None
    if site.layer is None:
        return 0, site.whole
    return site.layer, site.whole


def _groups(base: Restart, patches: list[Patch], memory: float, prompts: int) -> list[list[Patch]]:
    """Patches that share a forward pass: of one block and site, near in position, within the memory budget."""
    by_start: dict[tuple, list[Patch]] = {}
    for item in patches:
        by_start.setdefault(_begins(item.site), []).append(item)
    groups = []
    for items in by_start.values():
        items = sorted(items, key=lambda item: item.first)
        group: list[Patch] = []
        for item in items:
            if group:
                columns = base.end - group[0].first if base.cacheable else base.end
                enough = prompts * len(group) * columns >= _TOKENS_A_CALL and item.first > group[0].first + 1
                full = (len(group) + 1) * prompts * _bytes_a_row(base, columns) > memory * 2**30
                if full or (enough and base.cacheable and item.first >= group[0].first + max(2, columns // _PARTS)):
                    groups.append(group)
                    group = []
            group.append(item)
        groups.append(group)
    return groups


def _bytes_a_row(base: Restart, columns: int) -> int:
    """A generous estimate of one prompt's activations in one block, and its logits."""
    model = base.model
    width = max(
        (model.weights.W_in[0].shape[-1] if base.layers and base.layers[0].up else 4 * model.d_model), model.d_model
    )
    size = torch.finfo(model.dtype).bits // 8
    return size * (columns * (8 * model.d_model + 3 * width + model.n_heads * base.end) + 3 * base.vocab)


def _run_group(base: Restart, source: Restart, group: list[Patch]) -> Tensor:
    layer, site = _begins(group[0].site)
    start = min(item.first for item in group) if base.cacheable else 0
    values = source.recording[group[0].site.whole]
    return base.run(layer, len(group), start=start, site=site, write=_writer(group, values))


def _writer(group: list[Patch], values: Tensor) -> Callable[[Tensor, int], Tensor]:
    """Writes each patch of the group into its own copy of the prompts; positions are the second dimension."""
    whole = group[0].site.whole
    values = values.movedim(whole.pos_axis, 1)

    def write(x: Tensor, start: int) -> Tensor:
        out = x.clone().unflatten(0, (-1, len(group)))
        theirs = values.to(x.device)[:, : start + x.shape[1]]
        for index, item in enumerate(group):
            target = out[:, index]
            unit = slice(None) if item.site.unit is None else item.site.unit
            if item.columns is None:
                target[:, :, unit] = theirs[:, start:, unit]
                continue
            rows, slots = (item.columns >= start).nonzero(as_tuple=True)
            columns = item.columns[rows, slots]
            inside = columns < start + target.shape[1]
            rows, columns = rows[inside].to(x.device), columns[inside].to(x.device)
            target[rows, columns - start, unit] = theirs[rows, columns, unit]
        return out.flatten(0, 1)

    return write
