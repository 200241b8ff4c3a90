"""Whether two behaviours have parts of their own: take away what one needs, and see what each of the two loses.

    found = dissociate(model, facts, puzzles, budget=4, judged_on=(other_facts, other_puzzles))
    found.chosen["a"], found.selectivity("a"), found.p("a")
    found.verdict                                             # "double", "only a", "only b" or "none"

A part is chosen for what it does for one task beyond what it does for the other. What its ablation costs is measured on
other prompts, beside as many other parts at random and those with the largest activations. Where one behaviour is a
step of the other, what it needs is needed by both, and the verdict says so.
`firing_differences` compares neurons by how they fire instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from patchclamp import metrics
from patchclamp.interventions import Intervention, ablate
from patchclamp.model import Model
from patchclamp.patching.pairs import Pairs
from patchclamp.patching.sweep import sweep
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views import track

ABLATIONS = ("mean", "zero")
NAMES = ("a", "b")
_ROUNDING = 1e-5  # of the behaviour: what a part that does nothing may seem to do


@dataclass(frozen=True, eq=False)
class Dissociation:
    """`effects`: dims (task, site), the share of the behaviour that is lost with the corrupted prompts' activation, or
    None where the sets were given.

    `drops` has dims (set, ablation, task, prompt): by how much each prompt's score falls. Sets are "a" and "b", what
    was chosen for each; "large a", the parts with the largest activations on its prompts; "random a 0", ... of as many.
    Where one task has fewer prompts than the other, the rest is nan.
    """

    effects: xr.DataArray | None
    chosen: dict[str, tuple[Site, ...]]
    drops: xr.DataArray
    clean: dict[str, Float[np.ndarray, "prompt"]]
    random: int

    def drop(self, of: str, task: str, ablation: str = "mean") -> Float[np.ndarray, "prompt"]:
        """What each prompt of a task loses with a set ablated."""
        values = self.drops.sel(set=of, task=task, ablation=ablation).values
        return values[~np.isnan(values)]

    def selectivity(self, own: str, of: str | None = None, ablation: str = "mean") -> float:
        """How much more the own task loses than the other one; of the set chosen for it, or of another set."""
        (other,) = set(NAMES) - {own}
        of = own if of is None else of
        return float(self.drop(of, own, ablation).mean() - self.drop(of, other, ablation).mean())

    def randoms(self, own: str, ablation: str = "mean") -> list[float]:
        """The same of the random sets."""
        return [self.selectivity(own, f"random {own} {draw}", ablation) for draw in range(self.random)]

    def p(self, own: str, ablation: str = "mean", of: str | None = None) -> float:
        """How often a random set is as selective as the chosen one, or as the set `of`; that one counts among them."""
        found = self.selectivity(own, of, ablation)
        return (1 + sum(value >= found for value in self.randoms(own, ablation))) / (1 + self.random)

    def unshared(self, own: str, ablation: str = "mean", of: str | None = None) -> float:
        """The part of the own task's loss that the other does not share: 1 where that loses nothing; 0 of nothing."""
        loss = float(self.drop(own if of is None else of, own, ablation).mean())
        return self.selectivity(own, of, ablation) / loss if loss > 0 else 0.0

    @property
    def verdict(self) -> str:
        """Which tasks have parts of their own: whose set costs the other task at most half as much, and does so more
        than sets of other sites (p < .05); under every ablation. "double", "only a", "only b" or "none".
        """
        own = [
            name
            for name in NAMES
            if all(self.unshared(name, to) >= 0.5 and self.p(name, to) < 0.05 for to in self.ablations)
        ]
        return "double" if len(own) == 2 else f"only {own[0]}" if own else "none"

    @property
    def ablations(self) -> tuple[str, ...]:
        return tuple(map(str, self.drops.ablation.values))


def dissociate(
    model: Model,
    a: Task,
    b: Task,
    sites: "str | Site | Sequence[str | Site]" = "z.*.*",
    *,
    budget: int = 8,
    chosen: "dict[str, Sequence[str | Site]] | None" = None,
    judged_on: tuple[Task, Task] | None = None,
    score: "str | metrics.Metric" = metrics.top1,
    random: int = 40,
    seed: int = 0,
) -> Dissociation:
    """Choose up to `budget` sites for each of two tasks, on their prompts; ablate them on `judged_on`, or the same.

    A site's rank is the share of its own behaviour that it takes away, less the share of the other's (either way); none
    is chosen where that is not above 0. `chosen` gives sets that were found otherwise. Random sets have as many of
    the other `sites`.
    """
    wanted = model.sites(sites)
    if chosen is None and not 1 <= budget <= len(wanted) // 2:
        raise ValueError(f"a budget of {budget} of {len(wanted)} sites: give 1 to {len(wanted) // 2}")
    if random < 20:
        raise ValueError(f"{random} random sets cannot give a p-value below .05: give 20 at least")
    tasks = dict(zip(NAMES, (a, b), strict=True))
    judged = dict(zip(NAMES, judged_on or (a, b), strict=True))
    sets: dict[str, Sequence[Site]] = {}
    effects = None
    if chosen is None:
        effects = np.stack([_effects(model, task, wanted) for task in tasks.values()])
        for own, other, name in zip(effects, effects[::-1], NAMES, strict=True):
            specific = own - np.abs(other)
            order = np.argsort(-specific, kind="stable")[:budget].tolist()
            sets[name] = [wanted[at] for at in order if specific[at] > _ROUNDING]
    else:
        for name in NAMES:
            sets[name] = model.sites(chosen[name])
    found = {name: tuple(sets[name]) for name in NAMES}
    generator = torch.Generator().manual_seed(seed)
    for name in NAMES:
        count, rest = len(found[name]), [site for site in wanted if site not in found[name]]
        if count > len(rest):
            raise ValueError(f"{count} of {len(wanted)} sites are chosen for {name}: there are not as many others")
        sizes = _sizes(model, judged[name], wanted)
        sets[f"large {name}"] = [wanted[at] for at in np.argsort(-sizes, kind="stable")[:count]]
        for draw in range(random):
            picked = torch.randperm(len(rest), generator=generator)[:count].tolist()
            sets[f"random {name} {draw}"] = [rest[at] for at in picked]
    metric = metrics.by_name(score) if isinstance(score, str) else score
    pairs = {name: Pairs.of(model, task, metric=metric, direction="noise") for name, task in judged.items()}
    longest = max(len(task) for task in judged.values())
    drops = np.full((len(sets), len(ABLATIONS), 2, longest), np.nan)
    for row, some in enumerate(track(list(sets.values()), "ablating sets")):
        for column, to in enumerate(ABLATIONS):
            do: list[Intervention] = [ablate(site, to) for site in some]
            for at, one in enumerate(pairs.values()):
                drops[row, column, at, : len(one.base)] = (one.base_values - one.values(do)).double().cpu()
    coords = {"task": list(NAMES), "site": list(map(str, wanted))}
    return Dissociation(
        None if effects is None else xr.DataArray(effects, dims=("task", "site"), coords=coords, name="effect"),
        found,
        xr.DataArray(
            drops,
            dims=("set", "ablation", "task", "prompt"),
            coords={"set": list(sets), "ablation": list(ABLATIONS), "task": list(NAMES)},
            name="drop",
        ),
        {name: one.base_values.double().cpu().numpy() for name, one in pairs.items()},
        random,
    )


def firing_differences(model: Model, a: Task, b: Task, *, pos: int = -1) -> xr.Dataset:
    """How each neuron fires on two tasks' clean prompts, at `pos`: `t` (Welch), `auroc` and `q` (Benjamini-Hochberg).

    Dims (layer, neuron); positive `t`, and `auroc` above .5: more on `a`.
    """
    from scipy import stats

    layers = [site.layer for site in model.sites("mlp_post.*")]
    found = {}
    for name in ("t", "auroc", "p"):
        found[name] = []
    for layer in layers:
        site = Site("mlp_post", layer)
        sides = []
        for task in (a, b):
            run = model.run(task.clean, attention_mask=task.mask, record=site)
            sides.append(run[site][torch.arange(len(task)), task.positions + 1 + pos].double().cpu().numpy())
        test: Any = stats.ttest_ind(*sides, equal_var=False)
        found["t"].append(np.nan_to_num(test.statistic))  # a neuron that never changes differs in nothing
        found["p"].append(np.nan_to_num(test.pvalue, nan=1.0))
        ranks = stats.rankdata(np.concatenate(sides), axis=0)[: len(a)].sum(0)
        found["auroc"].append((ranks - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))
    tables = {name: np.stack(rows) for name, rows in found.items()}
    p = tables.pop("p")
    tables["q"] = stats.false_discovery_control(p.ravel()).reshape(p.shape)
    dims = ("layer", "neuron")
    return xr.Dataset({name: (dims, table) for name, table in tables.items()}, coords={"layer": layers})


def _effects(model: Model, task: Task, sites: list[Site]) -> np.ndarray:
    """The share of the logit difference that each site takes with it; 0 where there is no difference to take."""
    found = sweep(model, task, sites, positions="all", direction="noise", normalise=False)
    whole = found.attrs["clean"] - found.attrs["corrupted"]
    if abs(whole) < 1e-6:
        return np.zeros(len(sites))
    lost = []
    for site in sites:
        where = {"layer": site.layer, "head": site.unit, "neuron": site.unit, "unit": site.unit}
        patched = float(found.sel({dim: at for dim, at in where.items() if dim in found.dims}))
        lost.append((found.attrs["clean"] - patched) / whole)
    return np.array(lost)


def _sizes(model: Model, task: Task, sites: list[Site]) -> np.ndarray:
    """The norm of each site's activation, averaged over real tokens."""
    run = model.run(task.clean, attention_mask=task.mask, record=list(dict.fromkeys(site.whole for site in sites)))
    sizes = []
    for site in sites:
        x = run[site.whole] if site.unit is None else run[site.whole].select(site.unit_axis or 0, site.unit)
        x = x.reshape(*task.mask.shape, -1)
        sizes.append(float(x.norm(dim=-1)[task.mask.to(x.device)].mean()))
    return np.array(sizes)
