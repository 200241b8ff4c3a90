"""Ways to corrupt a prompt other than by another prompt: noise, the mean, or nothing at all in place of its tokens.

Gaussian noise is causal tracing's (Meng et al. 2022, arXiv:2202.05262): three standard deviations of the embeddings.
Zhang and Nanda (2024, arXiv:2309.16042) show that it can push activations out of distribution, and recommend other
prompts.
"""

from typing import Literal

import torch
from torch import Tensor

from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.tasks import Task

Corruption = Literal["resample", "gaussian", "mean", "zero"]
NOISE = 3.0
"""Standard deviations of the embedding table's entries."""


def corrupted_embedding(model: Model, task: Task, corruption: Corruption, *, seed: int = 0) -> tuple[Site, Tensor]:
    """The site where corruption enters, and its values [prompt, pos, d_model] with the differing tokens corrupted."""
    if corruption not in ("gaussian", "mean", "zero"):
        raise ValueError(f"corruption={corruption!r}: say 'resample', 'gaussian', 'mean' or 'zero'")
    site = Site("embed") if Site("embed") in model.anatomy.taps else Site("resid_pre", 0)
    values = model.run(task.clean, record=site, attention_mask=task.mask)[site].clone()
    where = (task.clean != task.corrupt) & task.mask
    where = where.to(values.device)
    if corruption == "gaussian":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(values.shape, generator=generator).to(values)
        table = model.embeddings.weight.detach()
        scale = table.float().std().to(values)
        if site.kind == "embed":  # in the units of the stream, where embeddings are multiplied on their way in
            scale = scale * (values[task.mask].norm() / table[task.clean[task.mask].to(table.device)].norm().to(values))
        values[where] += NOISE * scale * noise[where]
    elif corruption == "mean":
        values[where] = values[task.mask.to(values.device)].mean(0)
    else:
        values[where] = 0
    return site, values
