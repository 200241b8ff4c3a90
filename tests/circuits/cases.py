"""Tasks for random networks, which have nothing to know: ids, corrupted at two positions."""

import torch

import patchclamp as pc
from tiny import build

MIXED = ("moe", "mixtral", "gpt_oss")


def network(name: str) -> pc.Model:
    """A random network in double precision, where its kernels have it."""
    hf = build(name)
    return pc.wrap(hf if any(part in name for part in MIXED) else hf.double(), name=name)


def ids_task(prompts: int = 3, length: int = 6, *, padded: bool = False, seed: int = 0) -> pc.Task:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, 99, (prompts, length), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 1] = (clean[:, 1] + 7) % 90 + 3
    corrupt[:, 3] = (clean[:, 3] + 5) % 90 + 3
    mask = torch.ones_like(clean, dtype=torch.bool)
    if padded:
        mask[0, length - 1] = False
    answers = torch.arange(prompts) + 5
    return pc.Task.from_tokens(clean=clean, corrupt=corrupt, answers=answers, wrong=answers + 20, mask=mask)
