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
from jaxtyping import Bool, Int
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import Intervention, patch
from patchclamp.model import Model
from patchclamp.patching.batches import Patch, batches, begins
from patchclamp.patching.corruption import Corruption, corrupted_embedding
from patchclamp.patching.restart import Restart
from patchclamp.sites import KINDS, Site, SiteError
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress

Direction = Literal["denoise", "noise"]


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
    restart = Restart(
        model, base_ids, source_ids, task.mask, task.positions, base_do=base_do, source_do=source_do, sites=wholes
    )
    axes, patches = plan(task, wanted, positions, first=_first_difference(task) if restart.causal else 0)
    base_value = float(score(restart.logits, task).mean())
    source_value = float(score(restart.source_logits, task).mean())
    # What no patch below fills are positions where both runs are still the same: the patch changes nothing.
    values = np.full([len(labels) for _, labels in axes], base_value)
    differences = Differences(restart, _first_difference(task) if restart.causal else 0)
    open_ones = []
    for item in patches:
        if not differences.within(item):
            continue
        if differences.all_of_them(item):
            values[item.cell] = source_value
        else:
            open_ones.append(item)
    named = _named_tokens(task) if score in metrics.OF_NAMED_ANSWERS else None
    asked = task if named is None or not restart.only(named) else _Renumbered.of(task, named)
    with progress(f"patching {len(patches)} places", len(patches)) as advance:
        advance(len(patches) - len(open_ones))
        for batch in batches(restart, open_ones, memory):
            logits = _run(restart, batch)
            for index, item in enumerate(batch):
                values[item.cell] = float(score(logits[:, index], asked).mean())
            advance(len(batch))
    clean_value, corrupt_value = (source_value, base_value) if direction == "denoise" else (base_value, source_value)
    settings = {"method": "exact", "direction": direction, "corruption": corruption}
    if restart.whole_because is not None:
        settings["whole_prompts_because"] = restart.whole_because
    facts = describe(model, task, sites, **settings)
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
    found = model.sites(sites)
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


class Differences:
    """Where the two runs differ at all: what settles a patch without a run.

    A patch that puts in what is there already changes nothing. One that puts in all that differs in the stream leaves
    what the other run has, if later blocks read nothing but the stream.
    """

    def __init__(self, restart: Restart, first: int):
        self.restart, self._of = restart, {}
        columns = torch.arange(restart.end, device=restart.mask.device)
        counts = restart.mask[:, : restart.end]
        if restart.causal:  # positions behind the answer are never read, those before `first` are the same
            counts = counts & (columns >= first) & (columns <= restart.answers[:, None])
        self.counts: Bool[Tensor, "prompt pos"] = counts

    def within(self, item: Patch) -> bool:
        """Whether anything differs where this patch writes."""
        return bool((self._at(item.site) & self._written(item)).any())

    def all_of_them(self, item: Patch) -> bool:
        """Whether after this patch the whole stream is the other run's."""
        if item.site.kind not in ("resid_pre", "resid_post") or not self.restart.closed:
            return False
        return not bool((self._at(item.site) & ~self._written(item)).any())

    def _at(self, site: Site) -> Bool[Tensor, "prompt pos"]:
        if site not in self._of:
            unit = slice(None) if site.unit is None else slice(site.unit, site.unit + 1)
            ours, theirs = (
                side[site.whole].movedim(site.pos_axis, 1)[:, : self.restart.end]
                for side in (self.restart.before, self.restart.source)
            )
            differs = ours != theirs if site.unit is None else ours[:, :, unit] != theirs[:, :, unit]
            self._of[site] = differs.flatten(2).any(-1) & self.counts
        return self._of[site]

    def _written(self, item: Patch) -> Bool[Tensor, "prompt pos"]:
        written = torch.zeros_like(self.counts) if item.columns is not None else torch.ones_like(self.counts)
        if item.columns is not None:
            rows, slots = ((item.columns >= 0) & (item.columns < self.restart.end)).nonzero(as_tuple=True)
            written[rows.to(written.device), item.columns[rows, slots].to(written.device)] = True
        return written


def _run(restart: Restart, batch: list[Patch]) -> Tensor:
    layer, site = begins(batch[0].site)
    start = min(item.first for item in batch) if restart.cacheable else 0
    values = restart.source[batch[0].site.whole]
    return restart.run(layer, len(batch), start=start, site=site, write=_writer(batch, values))


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
