"""What a head attends to, as a score in [0, 1] for each class, beside the same score for tokens drawn at random.

    scores = attention_classes(model)                     # repeated random tokens; or attention_classes(model, tokens)
    scores["score"].sel(kind="induction")                 # [layer, head]; scores["null"], scores["p"] beside it

Classes: the previous token; an earlier occurrence of the same token (duplicate); the token after an earlier occurrence
(induction: Olsson et al. 2022, arXiv:2209.11895); the prompt's first token. A score is the attention that falls on the
class's keys, averaged over the queries that have any. What a head looks at is not yet what it does.
"""

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor

from patchclamp.model import Model
from patchclamp.sites import SiteError

KINDS = ("previous", "duplicate", "induction", "first")


def attention_classes(
    model: Model, inputs: Any = None, *, attention_mask: Any = None, draws: int = 200, seed: int = 0
) -> xr.Dataset:
    """Scores of every head: `score`, `null` (its mean over draws) and `p`, each with dims (kind, layer, head).

    A draw of the null moves each query's keys of a class to as many of the keys that it may see, at random: `p` is the
    share of draws (and the score itself) that score as high. `inputs` are by default random tokens that are said twice.
    """
    if draws < 1:
        raise ValueError("draws=0 leaves no null to compare with")
    if inputs is None:
        inputs = repeated_tokens(model, seed=seed)
    tokens = model.tokens(inputs, attention_mask)
    sites = [site for site in model.anatomy.taps if site.kind == "pattern" and not site.stack]
    if not sites:
        raise SiteError(f"{model.name} has no attention patterns")
    run = model.run(tokens.ids, record=sites, attention_mask=tokens.mask)
    patterns = torch.stack([run[site].float() for site in sites])  # [layer, prompt, head, query, key]
    patterns = patterns[..., : tokens.ids.shape[1]].cpu()
    seen = _seen(tokens.mask.cpu().bool(), bool(model.certificate.causal))
    classes = key_classes(tokens.ids.cpu(), tokens.mask.cpu().bool())
    generator = torch.Generator().manual_seed(seed)
    shape = (len(KINDS), len(sites), patterns.shape[2])
    score, null, p = (np.full(shape, np.nan) for _ in range(3))
    for row, kind in enumerate(KINDS):
        wanted = classes[kind] & seen
        if not bool(wanted.any()):
            continue
        score[row] = _score(patterns, wanted)
        others = np.stack([_score(patterns, _moved(wanted, seen, generator)) for _ in range(draws)])
        null[row] = others.mean(0)
        p[row] = (1 + (others >= score[row]).sum(0)) / (1 + draws)
    dims = ("kind", "layer", "head")
    return xr.Dataset(
        {"score": (dims, score), "null": (dims, null), "p": (dims, p)},
        coords={"kind": list(KINDS), "layer": [site.layer for site in sites], "head": list(range(shape[2]))},
        attrs={"model": model.name, "prompts": len(tokens.ids), "draws": draws, "seed": seed},
    )


def repeated_tokens(model: Model, *, n: int = 16, length: int = 24, seed: int = 0) -> Int[Tensor, "prompt pos"]:
    """`n` rows of `length` different random tokens, twice; the model's own first token, where it has one, in front."""
    size = len(model.embeddings.weight)
    if length >= size:
        raise ValueError(f"{length} different tokens of a vocabulary of {size}: give a smaller length")
    generator = torch.Generator().manual_seed(seed)
    config = getattr(model.hf, "config", None)
    special = {getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    plain = torch.tensor([token for token in range(size) if token not in special])
    rows = torch.stack([plain[torch.randperm(len(plain), generator=generator)[:length]] for _ in range(n)])
    first = getattr(config, "bos_token_id", None)
    start = [] if not isinstance(first, int) else [torch.full((n, 1), first)]
    return torch.cat([*start, rows, rows], 1)


def key_classes(
    ids: Int[Tensor, "prompt pos"], mask: Bool[Tensor, "prompt pos"]
) -> dict[str, Bool[Tensor, "prompt query key"]]:
    """Which keys each class names for each query; queries without such a key have a row of False."""
    length = ids.shape[1]
    where = torch.arange(length)
    real = mask[:, :, None] & mask[:, None, :]
    earlier = where[None, :] < where[:, None]
    same = (ids[:, :, None] == ids[:, None, :]) & earlier & real
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]  # the key one behind an earlier occurrence; the query itself where that is last
    left = mask.int().argmax(1)
    first = (where[None, None, :] == left[:, None, None]) & (where[None, :, None] > left[:, None, None])
    return {
        "previous": (where[None, :] == where[:, None] - 1)[None] & real,
        "duplicate": same,
        "induction": after & earlier & real,
        "first": first & real,
    }


def _seen(mask: Bool[Tensor, "prompt pos"], causal: bool) -> Bool[Tensor, "prompt query key"]:
    """The keys that each query may see."""
    seen = mask[:, :, None] & mask[:, None, :]
    return seen.tril() if causal else seen


def _score(patterns: Tensor, wanted: Bool[Tensor, "prompt query key"]) -> np.ndarray:
    """Attention on the wanted keys, averaged over queries that have any: [layer, head]."""
    queries = wanted.any(-1)
    on = torch.einsum("lphqk,pqk->lhpq", patterns, wanted.float())
    return (on * queries).sum((-2, -1)).div(queries.sum()).numpy()


def _moved(
    wanted: Bool[Tensor, "prompt query key"], seen: Bool[Tensor, "prompt query key"], generator: torch.Generator
) -> Bool[Tensor, "prompt query key"]:
    """As many keys for every query, drawn from those that it may see."""
    order = torch.rand(seen.shape, generator=generator).masked_fill(~seen, 2.0).argsort(-1).argsort(-1)
    return (order < wanted.sum(-1, keepdim=True)) & seen
