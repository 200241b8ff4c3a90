"""How a decision is routed: a head that writes little of the answer itself, and decides whether others write it.

    table = routes(model, task)                  # dims (layer, head): interchange effects beside what each head writes
    gate = candidates(table)[0]                  # needed, significant, and no more than 2 % of what is written
    cascade(model, task, gate)                   # what the others write for the answer, before and without the gate
    together(model, task, ["z.5.1", "z.6.0"])    # a band of heads at once, where one is backed up by another
    rescue(model, plain, coded, gate)            # the gate's state from a prompt in plain words, in its coded form

A task's clean prompts are those that are treated differently (refused, say) and its corrupted ones their twins that are
not; the answers are the first tokens of the two kinds of reply. After Frank 2026, arXiv:2604.04385.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import ablate, patch
from patchclamp.model import Model
from patchclamp.patching.direct import direct_effect
from patchclamp.patching.interchange import interchange
from patchclamp.patching.pairs import Pairs
from patchclamp.sites import Site
from patchclamp.tasks import Task

LITTLE = 0.02
"""The largest share of all that is written for the answer that a gate may write itself."""


def routes(model: Model, task: Task, *, permutations: int = 2000, seed: int = 0) -> xr.Dataset:
    """`interchange` of every head, with `direct`, the logits that it writes for the answer (clean less corrupted).

    `share` is the size of `direct` among the sizes of what all heads, MLPs and embeddings write so.
    """
    table = interchange(model, task, "z.*.*", permutations=permutations, seed=seed)
    written = _written(model, task)
    names = [[f"head_out.{layer}.{head}" for head in table["head"].values] for layer in table["layer"].values]
    direct = np.array([[float(written.sel(component=name)) for name in row] for row in names])
    total = float(np.abs(written).sum())
    dims = ("layer", "head")
    return table.assign(direct=(dims, direct), share=(dims, np.abs(direct) / total if total else np.zeros_like(direct)))


def candidates(table: xr.Dataset, *, little: float = LITTLE, p: float = 0.001) -> list[Site]:
    """The heads of `routes` that are needed (`p`, not corrected) and write `little` themselves, most needed first."""
    flat = table.stack(site=("layer", "head"))
    kept = flat.where((flat.necessity_p <= p) & (flat.share <= little) & (flat.necessity > 0), drop=True)
    order = np.argsort(-kept.necessity.values, kind="stable")
    return [Site("z", int(kept["layer"].values[at]), int(kept["head"].values[at])) for at in order]


def cascade(model: Model, task: Task, heads: "str | Site | Sequence[str | Site]") -> xr.Dataset:
    """What each component writes for the answer (clean less corrupted): `before`, and `after` these heads are zero.

    Dims (component). What a head loses that was not touched is what it had been told.
    """
    with model.under([ablate(site, "zero") for site in _sites(model, heads)]):
        after = _written(model, task)
    return xr.Dataset({"before": _written(model, task), "after": after})


def together(model: Model, task: Task, heads: "str | Site | Sequence[str | Site]") -> tuple[float, float]:
    """Necessity and sufficiency of several heads at once, exchanged between clean and corrupted prompts."""
    found = []
    for direction, sign in (("noise", -1), ("denoise", 1)):
        pairs = Pairs.of(model, task, direction=direction)  # type: ignore[arg-type]
        do = [
            patch(site, pairs.activations(site.whole)[1].select(site.unit_axis or 0, site.unit or 0))
            for site in _sites(model, heads)
        ]
        whole = abs(pairs.base_values.mean() - pairs.source_values.mean())
        found.append(float(sign * (pairs.values(do) - pairs.base_values).mean() / whole.clamp_min(1e-9)))
    return found[0], found[1]


def rescue(
    model: Model,
    plain: Task,
    coded: Task,
    heads: "str | Site | Sequence[str | Site]",
    *,
    pos: int = -1,
    metric: "str | metrics.Metric" = metrics.logit_difference,
) -> Float[Tensor, "prompt"]:
    """The metric of each coded prompt with these heads' states, at `pos`, from the same prompt in plain words."""
    if len(plain) != len(coded):
        raise ValueError(f"{len(plain)} plain and {len(coded)} coded prompts: each has its other form")
    sites = _sites(model, heads)
    run = model.run(plain.clean, attention_mask=plain.mask, record=list(dict.fromkeys(site.whole for site in sites)))
    columns = (plain.positions + 1 + pos)[:, None]
    rows = torch.arange(len(plain))[:, None]
    do = []
    for site in sites:
        state = run[site.whole].select(site.unit_axis or 0, site.unit or 0)
        do.append(patch(site, state[rows, columns], pos=(coded.positions + 1 + pos)[:, None]))
    logits = model.run(coded.clean, attention_mask=coded.mask, do=do).logits
    if logits is None:
        raise TypeError(f"{model.name} returns no logits, which a metric is a function of")
    score = metrics.by_name(metric) if isinstance(metric, str) else metric
    return score(coded.at_answer(logits), coded)


def _sites(model: Model, heads: "str | Site | Sequence[str | Site]") -> list[Site]:
    sites = model.sites(heads)
    if not sites or any(site.kind != "z" or site.unit is None for site in sites):
        raise ValueError(f"heads={heads!r}: expected heads, as z.LAYER.HEAD")
    return sites


def _written(model: Model, task: Task) -> xr.DataArray:
    """The mean direct effect of each component on clean prompts, less that on corrupted ones."""
    sides = [direct_effect(model, task, corrupted=corrupted).mean("prompt") for corrupted in (False, True)]
    return sides[0] - sides[1]
