"""Experts switched off and on: which ones a mixture's routers choose for one class of prompts, and what that does.

    found = pc.steering.experts.relevance(model, refused, answered)        # mean routed weight, less that of the others
    off = pc.steering.experts.switch(model, off=found.most(3))
    model.generate(prompts, do=off, max_new_tokens=16)                      # as well in `run` and `under`
    beside = [found.drawn(3, seed=0), found.matched(3, seed=0)]             # controls: any three, three used as often

An expert is named by its router's unit: "router.2.5" is expert 5 of layer 2. After "Mixture of Tunable Experts"
(Dahlke et al. 2025, arXiv:2502.11096), whose relevance sums over tokens; here it is the mean, so that a class of longer
prompts does not have more of every expert.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.interventions import Intervention, InterventionError, When, edit
from patchclamp.model import Model
from patchclamp.positions import Position
from patchclamp.sites import Site
from patchclamp.steering.direction import DirectionError
from patchclamp.steering.means import Pattern

Experts = Sequence[str | Site]


@dataclass(frozen=True, eq=False)
class Activity:
    """By prompt, over its tokens: each expert's mean weight (0 where it is not chosen), and how often it is chosen."""

    experts: tuple[Site, ...]
    weight: Float[Tensor, "prompt expert"]
    chosen: Float[Tensor, "prompt expert"]


def activity(
    model: Model, prompts: Any, *, routers: Pattern = "router.*", pos: Position = None, batch: int = 64
) -> Activity:
    """What the routers do at the chosen positions of each prompt; padding is left out.

    `pos` is an index, a slice, a list or a span, not a tensor with a row for each prompt.
    """
    if isinstance(pos, Tensor):
        raise DirectionError("pos is a tensor by prompt; give an index, a slice, a list or pc.span(...)")
    tokens = model.tokens(prompts)
    sites = list(dict.fromkeys(site.whole for site in model.sites(routers)))
    weight, index = ([_beside(model, site, kind) for site in sites] for kind in ("expert_weight", "expert_index"))
    weights, choices = [], []
    for start in range(0, len(tokens.ids), batch):
        ids, mask = tokens.ids[start : start + batch], tokens.mask[start : start + batch]
        run = model.run(ids, attention_mask=mask, record=weight + index, positions=pos, stop=True)
        every = torch.cat([run[site] for site in weight], -1).float().cpu()
        chosen = torch.cat(
            [torch.zeros_like(run[w]).scatter(-1, run[i], 1) for w, i in zip(weight, index, strict=True)], -1
        )
        real = (mask if pos is None else torch.ones(every.shape[:2])).float().cpu()[..., None]
        weights.append((every * real).sum(1) / real.sum(1))
        choices.append((chosen.float().cpu() * real).sum(1) / real.sum(1))
    units = model.anatomy.inventory.units
    experts = tuple(Site(s.kind, s.layer, unit, s.stack) for s in sites for unit in range(units[s]))
    return Activity(experts, torch.cat(weights), torch.cat(choices))


@dataclass(frozen=True, eq=False)
class Relevance:
    """`score` [expert]: mean weight over positive prompts less that over negative; `usage`: how often chosen in all."""

    experts: tuple[Site, ...]
    score: Float[Tensor, "expert"]
    usage: Float[Tensor, "expert"]

    def most(self, k: int) -> list[Site]:
        """The `k` experts of all layers with the highest score; of equal ones the first."""
        return [self.experts[i] for i in self._order(k)[:k]]

    def drawn(self, k: int, *, seed: int = 0) -> list[Site]:
        """`k` experts drawn from all others: the control of `most(k)`."""
        rest = self._order(k)[k:]
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:k].tolist()
        return [self.experts[rest[i]] for i in order]

    def matched(self, k: int, *, seed: int = 0, near: int = 3) -> list[Site]:
        """For each of `most(k)` another, drawn from the `near` that are chosen most nearly as often."""
        generator, order = torch.Generator().manual_seed(seed), self._order(k)
        rest, found = order[k:], []
        for wanted in order[:k]:
            rest.sort(key=lambda i: abs(float(self.usage[i] - self.usage[wanted])))
            found.append(rest.pop(int(torch.randint(min(near, len(rest)), (1,), generator=generator))))
        return [self.experts[i] for i in found]

    def _order(self, k: int) -> list[int]:
        if not 0 < k <= len(self.experts) // 2:
            raise DirectionError(f"k={k} of {len(self.experts)} experts; at most half, so that as many others are left")
        return self.score.argsort(descending=True, stable=True).tolist()


def relevance(
    model: Model, positive: Any, negative: Any, *, routers: Pattern = "router.*", pos: Position = None
) -> Relevance:
    """How much more weight each expert has on `positive` than on `negative` prompts, at the chosen positions."""
    high, low = (activity(model, prompts, routers=routers, pos=pos) for prompts in (positive, negative))
    usage = torch.cat([high.chosen, low.chosen]).mean(0)
    return Relevance(high.experts, high.weight.mean(0) - low.weight.mean(0), usage)


def switch(
    model: Model,
    *,
    off: Experts = (),
    on: Experts = (),
    margin: float = 1.0,
    pos: Position = None,
    when: When = "all",
) -> list[Intervention]:
    """Experts that never count, and experts that always do: `force` those `on`, then `weigh` those `off` by 0."""
    both = {str(s) for s in _each(model, off)} & {str(s) for s in _each(model, on)}
    if both:
        raise DirectionError(f"{', '.join(sorted(both))} is to be off and on")
    if not (off or on):
        raise DirectionError("no expert is named")
    do = force(model, on, margin=margin, pos=pos, when=when) if on else []
    return do + (weigh(model, dict.fromkeys(off, 0.0), pos=pos, when=when) if off else [])


def weigh(
    model: Model, factors: Mapping[str | Site, float], *, pos: Position = None, when: When = "all"
) -> list[Intervention]:
    """Multiply the weight of chosen experts by a factor (0: off), and all weights of a token so that their sum stays.

    w'_e = f_e w_e * sum_j(w_j) / sum_j(f_j w_j) over the experts of a token. No other takes the place of one that is
    off; where all that were chosen are off, nothing is left.
    """
    by_layer: dict[Site, dict[int, float]] = {}
    for name, factor in factors.items():
        if not 0 <= factor < float("inf"):
            raise DirectionError(f"{name}: factor {factor}; a weight is multiplied by 0 or more")
        for site in _each(model, [name]):
            assert site.unit is not None
            by_layer.setdefault(site.whole, {})[site.unit] = float(factor)
    if not by_layer:
        raise DirectionError("no expert is named")
    return [
        edit(_beside(model, router, "expert_weight"), _weighed(few), pos, when=when) for router, few in by_layer.items()
    ]


def force(
    model: Model, experts: Experts, *, margin: float = 1.0, pos: Position = None, when: When = "all"
) -> list[Intervention]:
    """Have experts chosen for every token: each one's logit becomes the token's largest of the others plus `margin`.

    A softmax router then gives it exp(margin) times the weight of the expert that it would have preferred. Raises
    `DirectionError` where more are forced in a layer than it has slots, and `InterventionError` in the run where a
    router does not choose by its logits alone and leaves them out.
    """
    by_layer: dict[Site, list[int]] = {}
    for site in _each(model, experts):
        assert site.unit is not None
        by_layer.setdefault(site.whole, []).append(site.unit)
    if not by_layer:
        raise DirectionError("no expert is named")
    if not 0 < margin < float("inf"):
        raise DirectionError(f"margin={margin}: how far above the largest logit; more than 0")
    do: list[Intervention] = []
    for router, units in by_layer.items():
        index = _beside(model, router, "expert_index")
        slots = model.anatomy.inventory.units[index]
        if len(units) > slots:
            raise DirectionError(f"{router}: {len(units)} experts are forced, and a token has {slots} slots")
        forced = _Forced(router, units, margin)
        do += [edit(router, forced.raised, pos, when=when), edit(router, forced.seen), edit(index, forced.checked)]
    return do


def _weighed(factors: dict[int, float]) -> Callable[..., Tensor]:
    def weighed(weight: Tensor, **_: Any) -> Tensor:
        new = weight.clone()
        new[..., list(factors)] *= torch.tensor(list(factors.values())).to(weight)
        left = new.sum(-1, keepdim=True)
        return torch.where(left > 0, new * weight.sum(-1, keepdim=True) / left, 0.0)

    return weighed


@dataclass
class _Forced:
    """Experts of one router, raised in its logits and looked for among those chosen in the same forward pass."""

    router: Site
    units: list[int]
    margin: float
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def raised(self, logits: Tensor, **_: Any) -> Tensor:
        out = logits.clone()
        out[..., self.units] = _without(logits, self.units).amax(-1, keepdim=True) + self.margin
        return out

    def seen(self, logits: Tensor, **_: Any) -> Tensor:
        self.logits = logits
        return logits

    def checked(self, index: Tensor, **_: Any) -> Tensor:
        others = _without(self.logits, self.units).amax(-1)
        for unit in self.units:
            raised = self.logits[..., unit] - others > 0.9 * self.margin
            if not bool(((index == unit).any(-1) | ~raised).all()):
                raise InterventionError(
                    f"{self.router}.{unit} has the largest logit and is not chosen: this router goes by more than its "
                    "logits (a bias, groups); give a larger margin"
                )
        return index


def _without(logits: Tensor, units: list[int]) -> Tensor:
    rest = [unit for unit in range(logits.shape[-1]) if unit not in units]
    return logits[..., rest]


def _beside(model: Model, router: Site, kind: str) -> Site:
    """The site of another kind in a router's layer; `SiteError` says why an architecture has none."""
    (site,) = model.sites(Site(kind, router.layer, stack=router.stack))
    return site


def _each(model: Model, experts: Experts) -> list[Site]:
    """The experts named; a whole router is refused."""
    found = model.sites(experts)
    for site in found:
        if site.kind != "router" or site.unit is None:
            raise DirectionError(f"{site} names no expert; expert 5 of layer 2 is 'router.2.5'")
    return found
