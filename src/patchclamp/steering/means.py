"""Directions from averages: a mean, a mean less the average text's, the difference of two, the principal component.

    refusal = pc.steering.difference(model, harmful, harmless, site="resid_pre.2", pos=-1)

`pos` chooses the tokens (all that are not padding by default); prompts are texts or token ids. All sites that one
pattern names are read in one pass: `differences(model, a, b, sites="resid_post.*")` gives a direction for each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.model import Model
from patchclamp.positions import Position
from patchclamp.sites import Site
from patchclamp.steering.direction import Direction, DirectionError

FEWEST = 8  # rows that a mean is taken over; below that a direction is mostly noise

Pattern = str | Site | Sequence[str | Site]


def activations(
    model: Model, prompts: Any, sites: Pattern, *, pos: Position = None, batch: int = 64
) -> dict[Site, Float[Tensor, "row d"]]:
    """What each site holds at the chosen positions of all prompts, one row a token; padding is left out.

    float32 on the CPU. A site of units (z, q, experts) is flattened to [row, unit * d]. `pos` must mean the same for
    every batch: an index, a slice, a list or a span, not a tensor with a row for each prompt.
    """
    if isinstance(pos, Tensor):
        raise DirectionError("pos is a tensor by prompt; give an index, a slice, a list or pc.span(...)")
    tokens = model.tokens(prompts)
    found = model.sites(sites)
    kept: dict[Site, list[Tensor]] = {site: [] for site in found}
    for start in range(0, len(tokens.ids), batch):
        ids, mask = tokens.ids[start : start + batch], tokens.mask[start : start + batch]
        run = model.run(ids, attention_mask=mask, record=found, positions=pos, stop=True)
        for site in found:
            values = run[site].float().cpu()
            rows = values[mask.cpu().bool()] if pos is None else values.flatten(0, 1)
            kept[site].append(rows.flatten(1))
    return {site: torch.cat(rows) for site, rows in kept.items()}


def mean(model: Model, prompts: Any, *, site: str | Site, pos: Position = None) -> Direction:
    """The mean activation of `prompts`, uncentred: mostly the offset that all text shares; a baseline."""
    rows = activations(model, prompts, site, pos=pos)
    return _direction(model, _only(rows), _enough(rows, "prompts").mean(0), "mean", prompts=_count(prompts))


def mean_centred(model: Model, prompts: Any, *, background: Any, site: str | Site, pos: Position = None) -> Direction:
    """Mean over `prompts` less the mean over `background` text, v = E[h | target] - E[h] (arXiv:2312.03813, eq. 1).

    Raises `DirectionError` for fewer than 8 rows on either side.
    """
    target, rest = (activations(model, texts, site, pos=pos) for texts in (prompts, background))
    vector = centre(_enough(target, "prompts"), _enough(rest, "background"))
    count = {"prompts": _count(prompts), "background": _count(background)}
    return _direction(model, _only(target), vector, "mean_centred", **count)


def centre(target: Float[Tensor, "row d"], background: Float[Tensor, "other d"]) -> Float[Tensor, "d"]:
    """Mean of `target` less mean of `background`: what both share, however large, is gone.

    >>> centre(torch.tensor([[7.0, 1.0]]), torch.tensor([[7.0, 0.0]]))
    tensor([0., 1.])
    """
    return target.mean(0) - background.mean(0)


def difference(model: Model, positive: Any, negative: Any, *, site: str | Site, pos: Position = None) -> Direction:
    """Mean over `positive` less mean over `negative` prompts, the difference of means (Rimsky et al. 2024)."""
    found = differences(model, positive, negative, sites=site, pos=pos)
    return found[_only(found)]


def differences(
    model: Model, positive: Any, negative: Any, *, sites: Pattern, pos: Position = None
) -> dict[Site, Direction]:
    """The difference of means at every site that `sites` names, from one pass over each side."""
    high, low = (activations(model, prompts, sites, pos=pos) for prompts in (positive, negative))
    count = {"positive": _count(positive), "negative": _count(negative)}
    vectors = {s: _rows(high[s], "positive").mean(0) - _rows(low[s], "negative").mean(0) for s in high}
    return {site: _direction(model, site, vector, "difference", **count) for site, vector in vectors.items()}


def principal(model: Model, positive: Any, negative: Any, *, site: str | Site, pos: Position = -1) -> Direction:
    """The first principal component of paired differences, signed and scaled like their mean (Zou et al. 2023).

    Prompt i of `positive` goes with prompt i of `negative`; its length is the mean's component along it.
    """
    high, low = (activations(model, prompts, site, pos=pos) for prompts in (positive, negative))
    at = _only(high)
    if len(high[at]) != len(low[at]):
        raise DirectionError(f"pairs need as many rows on both sides, not {len(high[at])} and {len(low[at])}")
    gaps = _rows(high[at], "positive") - low[at]
    # Uncentred: what all pairs share is the signal, and centring would remove it.
    _, _, axes = torch.linalg.svd(gaps, full_matrices=False)
    vector = (gaps.mean(0) @ axes[0]) * axes[0]
    return _direction(model, at, vector, "principal", pairs=len(gaps))


def _direction(model: Model, site: str | Site, vector: Tensor, fit: str, **about: Any) -> Direction:
    return Direction(str(site), vector, fit, {"model": model.name, **about})


def _only(found: Mapping[Site, Any]) -> Site:
    if len(found) != 1:
        raise DirectionError(
            f"a direction is at one site; the pattern names {len(found)}: {', '.join(map(str, found))}"
        )
    return next(iter(found))


def _enough(found: Mapping[Site, Tensor], name: str) -> Tensor:
    return _rows(found[_only(found)], name)


def _rows(rows: Tensor, name: str) -> Tensor:
    if len(rows) < FEWEST:
        raise DirectionError(f"{name}: {len(rows)} rows, and a mean of fewer than {FEWEST} is mostly noise")
    return rows


def _count(prompts: Any) -> int:
    return 1 if isinstance(prompts, str) else len(prompts)
