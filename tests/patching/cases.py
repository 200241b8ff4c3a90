"""A small task on a tiny model, and the slow, plain way to do what a sweep does."""

import numpy as np
import torch

import patchclamp as pc
import tiny
from patchclamp.model import Model, wrap

LENGTH, DIFFERS = 9, 3


def model(name: str) -> Model:
    return wrap(tiny.build(name), name=name)


def task(*, ragged: bool = False, first: int = DIFFERS) -> pc.Task:
    """Four prompts that differ from their corrupted twins at one position."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 45, (4, LENGTH), generator=generator)
    corrupt = clean.clone()
    corrupt[:, first] += 45
    mask = torch.ones_like(clean, dtype=torch.bool)
    if ragged:
        mask[1, 7:] = mask[3, 6:] = False
    return pc.Task.from_tokens(
        clean=clean, corrupt=corrupt, answers=[5, 6, 7, 8], wrong=[15, 16, 17, 18], mask=mask if ragged else None
    )


def naive(model: Model, task: pc.Task, pattern: str, positions: str, *, noise: bool = False) -> np.ndarray:
    """One whole forward pass for each patch."""

    def score(logits: torch.Tensor | None) -> float:
        assert logits is not None
        return float(pc.metrics.logit_difference(task.at_answer(logits), task).mean())

    sites = model.sites(pattern)
    base, other = (task.clean, task.corrupt) if noise else (task.corrupt, task.clean)
    source = model.run(other, record=[site.whole for site in sites], attention_mask=task.mask)
    ends = score(source.logits), score(model.run(base, attention_mask=task.mask).logits)
    clean, corrupted = ends[::-1] if noise else ends
    values = []
    for site in sites:
        for pos in range(LENGTH) if positions == "each" else [None]:
            where = None if pos is None else torch.where(task.mask[:, pos], pos, -100)[:, None]
            rows = None if pos is None else task.mask[:, pos].nonzero().flatten().tolist()
            place = None if where is None else where.clamp_min(0)
            out = model.run(base, do=[pc.patch(site, source, pos=place, rows=rows)], attention_mask=task.mask)
            values.append((score(out.logits) - corrupted) / (clean - corrupted))
    return np.array(values)
