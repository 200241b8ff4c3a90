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
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.anatomy.experts import RouterWatch
from patchclamp.interventions import Intervention, InterventionError, When, edit
from patchclamp.model import Model
from patchclamp.positions import Position
from patchclamp.sites import Site
from patchclamp.steering.direction import DirectionError
from patchclamp.steering.means import Pattern

Experts = Sequence[str | Site]


def routed(
    model: Model, router: str | Site, logits: Float[Tensor, "*row expert"]
) -> tuple[Int[Tensor, "*row slot"], Float[Tensor, "*row slot"]]:
    """The experts that a router chooses for these logits, and the weights that it gives them.

    The router's own code says so, after the linear map that makes its logits: softmax or sigmoid, renormalised, scaled
    or limited to groups, as the architecture has it. Raises `DirectionError` where it returns no weights.
    """
    (site,) = model.sites(router)
    module = model.hf.get_submodule(model.anatomy.taps[site.whole].path)
    flat = logits.reshape(-1, logits.shape[-1])
    with RouterWatch(flat.shape[-1], lambda _: flat):
        # Not called as a module: whatever is recorded or edited at the router is not to happen again.
        out = module.forward(torch.zeros(len(flat), model.d_model, dtype=model.dtype, device=flat.device))
    tensors = [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)]
    index = next((t for t in tensors if not t.is_floating_point()), None)
    # Where every expert is chosen the logits have the same shape; they come first.
    weight = [t for t in tensors if index is not None and t.is_floating_point() and t.shape == index.shape]
    if index is None or not weight:
        raise DirectionError(
            f"{site.whole}: {type(module).__name__} returns {[list(t.shape) for t in tensors]} for {len(flat)} tokens, "
            "and not the index of each chosen expert beside its weight"
        )
    rows = logits.shape[:-1]
    return index.reshape(*rows, -1), weight[-1].reshape(*rows, -1)


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
    units = model.anatomy.inventory.units
    weights, choices = [], []
    for start in range(0, len(tokens.ids), batch):
        ids, mask = tokens.ids[start : start + batch], tokens.mask[start : start + batch]
        run = model.run(ids, attention_mask=mask, record=sites, positions=pos, stop=True)
        found = []
        for site in sites:
            logits = run[site]
            index, weight = (t.cpu() for t in routed(model, site, logits))
            real = (mask if pos is None else torch.ones(logits.shape[:2])).float().cpu()[..., None]
            empty = torch.zeros(*index.shape[:2], units[site])
            both = empty.scatter(-1, index, weight.float()), empty.scatter(-1, index, 1.0)
            found.append([(x * real).sum(1) / real.sum(1) for x in both])
        weights.append(torch.cat([w for w, _ in found], 1))
        choices.append(torch.cat([c for _, c in found], 1))
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

    w'_s = f_s w_s * sum_t(w_t) / sum_t(f_t w_t) over the slots of a token. No other expert takes the place of one that
    is off; where all that were chosen are off, nothing is left. Put other edits of these routers before these.
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
    do: list[Intervention] = []
    for router, few in by_layer.items():
        at = {kind: Site(kind, router.layer, stack=router.stack) for kind in ("expert_index", "expert_post")}
        experts = model.hf.get_submodule(model.anatomy.taps[at["expert_post"]].path)
        if getattr(experts, "down_proj_bias", None) is not None:
            raise DirectionError(
                f"{router}: its experts add a bias behind their neurons, which has the routed weight too, and no site "
                "shows it; `force` works here"
            )
        token = _Token(model, router)
        do += [edit(router, token.seen), edit(at["expert_index"], token.checked)]
        do += [edit(at["expert_post"], token.weighed(few), pos, when=when)]
    return do


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
        slots = model.anatomy.inventory.units[Site("expert_index", router.layer, stack=router.stack)]
        if len(units) > slots:
            raise DirectionError(f"{router}: {len(units)} experts are forced, and a token has {slots} slots")
        token = _Token(model, router)
        do += [edit(router, _raised(units, margin), pos, when=when), edit(router, token.seen)]
        do += [edit(Site("expert_index", router.layer, stack=router.stack), token.includes(units, margin))]
    return do


class _Token:
    """What one router said in the forward pass under way, for the edits of its experts that come after it."""

    def __init__(self, model: Model, router: Site):
        self.model, self.router, self.logits = model, router, torch.empty(0)

    def seen(self, logits: Tensor, **_: Any) -> Tensor:
        self.logits = logits
        return logits

    def checked(self, index: Tensor, **_: Any) -> Tensor:
        if not torch.equal(index, routed(self.model, self.router, self.logits)[0]):
            raise InterventionError(
                f"{self.router}: the experts chosen are not those of its logits; edits of a router, and experts that "
                "are forced, go before weights in the list of interventions"
            )
        return index

    def includes(self, units: list[int], margin: float) -> Callable[..., Tensor]:
        def check(index: Tensor, **_: Any) -> Tensor:
            others = _without(self.logits, units).amax(-1)
            for unit in units:
                raised = self.logits[..., unit] - others > 0.9 * margin
                if not bool(((index == unit).any(-1) | ~raised).all()):
                    raise InterventionError(
                        f"{self.router}.{unit} has the largest logit and is not chosen: this router goes by more than "
                        "its logits (a bias, groups); give a larger margin"
                    )
            return index

        return check

    def weighed(self, factors: dict[int, float]) -> Callable[..., Tensor]:
        def scaled(neurons: Tensor, **_: Any) -> Tensor:
            index, weight = routed(self.model, self.router, self.logits)
            factor = torch.ones(self.logits.shape[-1], dtype=weight.dtype, device=weight.device)
            factor[list(factors)] = torch.tensor(list(factors.values())).to(factor)
            factor = factor[index]
            left = (weight * factor).sum(-1, keepdim=True)
            kept = torch.where(left > 0, weight.sum(-1, keepdim=True) / left, torch.zeros_like(left))
            return neurons * (factor * kept)[..., None].to(neurons)

        return scaled


def _raised(units: list[int], margin: float) -> Callable[..., Tensor]:
    def raised(logits: Tensor, **_: Any) -> Tensor:
        out = logits.clone()
        out[..., units] = _without(logits, units).amax(-1, keepdim=True) + margin
        return out

    return raised


def _without(logits: Tensor, units: list[int]) -> Tensor:
    rest = [unit for unit in range(logits.shape[-1]) if unit not in units]
    return logits[..., rest]


def _each(model: Model, experts: Experts) -> list[Site]:
    """The experts named; a whole router is refused."""
    found = model.sites(experts)
    for site in found:
        if site.kind != "router" or site.unit is None:
            raise DirectionError(f"{site} names no expert; expert 5 of layer 2 is 'router.2.5'")
    return found
