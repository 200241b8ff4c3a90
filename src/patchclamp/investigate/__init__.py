"""The main job: which parts of this model do this, what do they attend to, and what happens when they are changed?

    investigation = pc.investigate.run(pc.load("organism:tales"), pc.tasks.ioi(model))
    print(investigation.summary());  investigation.save("report/")

Certificate, behaviour, exact patching over layers, positions and heads beside its linear approximation, direct
effects, the heads that the behaviour needs beside random heads, the circuit that it runs along beside random circuits,
a direction that flips it beside random directions, and the latents of a sparse dictionary that carry it beside those of
an untrained one. All are chosen on half of the prompts and judged on the other half.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from patchclamp import patching
from patchclamp.dictionaries.latents import Latents
from patchclamp.investigate import circuit, direction, features, heads
from patchclamp.investigate.result import Investigation, Tables
from patchclamp.model import Model
from patchclamp.tasks import Task

__all__ = ["CannotDo", "Investigation", "run"]


class CannotDo(ValueError):
    """The model does not do the task, so that there is nothing to explain."""


def run(
    model: Model,
    task: Task,
    *,
    latents: Latents | None = None,
    texts: Sequence[str] = (),
    out: str | Path | None = None,
    seed: int = 0,
) -> Investigation:
    """Investigate how `model` does `task`; with `out`, write `report.html` and `results.json` there.

    `latents` are those of a dictionary (`dictionary.as_site("resid_post.2")`). Without them one is learned where the
    direction is found, from `texts`, or from what the model itself writes.

    Raises CannotDo where the model is not right on the task more often than chance, or the corruption changes nothing.
    """
    began = time.monotonic()
    if len(task) < 8:
        raise ValueError(f"{len(task)} prompts are too few to choose on half and judge on the other: give at least 8")
    certificate = model.certificate
    behaviour = task.baseline(model, seed=seed)
    if not behaviour.holds:
        raise CannotDo(
            f"{model.name} does not do this task, so that there is nothing to explain. {behaviour}. It goes on where "
            "accuracy is above chance and the corrupted prompts change the metric, both beyond their 95 % intervals."
        )
    order = torch.randperm(len(task), generator=torch.Generator().manual_seed(seed))
    half = len(task) // 2
    choose, judge = task[order[:half].sort().values], task[order[half:].sort().values]
    positions = "each" if _one_shape(task) else "labels"
    streams = {
        kind: patching.sweep(model, choose, f"{kind}.*", positions=positions)
        for kind in ("resid_pre", "attn_out", "mlp_out")
        if any(site.kind == kind and not site.stack for site in model.sites())
    }
    approximate = patching.attribution(model, choose, "resid_pre.*", positions=positions)
    has_heads = any(site.kind == "z" and not site.stack for site in model.sites())
    tables = Tables(
        positions=positions,
        labels=_labels(model, task, positions),
        streams=streams,
        stream_attribution=approximate,
        heads=patching.sweep(model, choose, "z.*.*", positions="all") if has_heads else None,
        head_attribution=patching.attribution(model, choose, "z.*.*", positions="all") if has_heads else None,
        direct=_direct(model, choose),
    )
    named = heads.find(model, choose, judge, tables.heads, seed=seed) if tables.heads is not None else None
    edges = circuit.find(model, choose, judge, seed=seed)
    flip = direction.find(model, choose, judge, seed=seed)
    carriers = features.find(model, choose, judge, flip.site, latents=latents, texts=texts, seed=seed)
    found = Investigation(
        model=model.name,
        task=task.name,
        prompts=len(task),
        seed=seed,
        certificate=certificate,
        behaviour=behaviour,
        tables=tables,
        heads=named,
        circuit=edges,
        flip=flip,
        features=carriers,
        patterns=_patterns(model, judge, named) if named is not None else None,
        example=task.clean_text[0] if task.clean_text else str(task.clean[0].tolist()),
        seconds=time.monotonic() - began,
    )
    if out is not None:
        found.save(out)
    return found


def _one_shape(task: Task) -> bool:
    """Whether position p means the same in all prompts: one length, and every role at one place."""
    return bool(task.mask.all()) and all(len(where.unique()) == 1 for where in task.labels.values())


def _labels(model: Model, task: Task, positions: str) -> tuple[str, ...]:
    """What stands at each column of a heat map: the first prompt's tokens, or the roles."""
    if positions == "labels":
        return tuple(task.labels)
    ids = task.clean[0].tolist()
    if model.tokenizer is None:
        return tuple(str(i) for i in ids)
    roles = {int(where[0]): role for role, where in task.labels.items()}
    tokens = [model.tokenizer.decode([i]) for i in ids]
    return tuple(f"{token} ({roles[p]})" if p in roles else token for p, token in enumerate(tokens))


def _direct(model: Model, task: Task) -> Any:
    from patchclamp.sites import SiteError

    try:
        return patching.direct_effect(model, task)
    except SiteError:
        return None  # no last norm and unembedding: the certificate says so


def _patterns(model: Model, task: Task, named: heads.Heads) -> dict[str, Any]:
    """Attention of the named heads on one prompt, and from the answer position to each role on average."""
    sites = [f"pattern{head.removeprefix('z')}" for head in named.named]
    run = model.run(task.clean, record=sites, attention_mask=task.mask)
    rows = torch.arange(len(task))
    length = int(task.mask[0].sum())
    ids = task.clean[0, :length].tolist()
    tokens = [str(i) if model.tokenizer is None else model.tokenizer.decode([i]) for i in ids]
    shown = {
        head: run[site][0, :length, :length].float().cpu().numpy()
        for head, site in zip(named.named, sites, strict=True)
    }
    return {
        "tokens": tokens,
        "example": shown,
        "to_roles": [
            {"head": head, "from": "END"}
            | {
                role: float(run[site][rows, task.positions, where.clamp_min(0)][where >= 0].float().mean())
                for role, where in task.labels.items()
                if bool((where >= 0).any())
            }
            for head, site in zip(named.named, sites, strict=True)
        ],
    }
