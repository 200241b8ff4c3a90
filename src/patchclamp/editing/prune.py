"""Selective pruning: take out the units that one kind of text uses and another does not.

    pruning = pc.editing.prune(model, code, prose, mlp=0.02, steps=10, until=0.2)
    pruning.rows()                            # the curve: share of units removed, accuracy on either text
    with pruning.edit.applied(model): ...
    mine, theirs = activity(model, code), activity(model, prose)
    choose(mine, theirs, mlp=0.1)             # one step; controls: choose(mine, None, ...), choose(theirs, mine, ...)

A unit's importance to a text is its mean size |z|, root mean square, standard deviation, or how often it is positive;
its score is importance to what is to be forgotten / (importance to what is to be kept + eps). The highest scores of all
layers go, a few at a time, scored anew after each step (Pochinkov and Schoots 2024, arXiv:2403.01267).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.editing.edit import Edit, EditError
from patchclamp.editing.units import KINDS, Units
from patchclamp.model import Model
from patchclamp.views import track

Score = Literal["abs", "rms", "std", "freq"]
SCORES: tuple[Score, ...] = ("abs", "rms", "std", "freq")


@dataclass(frozen=True, eq=False)
class Activity:
    """The four importances of every unit on one text: `activity["abs"]["mlp_post.1"]` is [unit]."""

    of: dict[str, dict[str, Float[Tensor, "unit"]]]
    tokens: int

    def __getitem__(self, score: str) -> dict[str, Float[Tensor, "unit"]]:
        if score not in self.of:
            raise EditError(f"no importance is called {score!r}; there are {', '.join(SCORES)}")
        return self.of[score]


def activity(model: Model, texts: Any, *, kinds: Sequence[str] = KINDS, batch: int = 64) -> Activity:
    """How active each neuron (`mlp_post`) and value channel (`z`) is on the real tokens of `texts`, in one pass.

    float64. Raises `SiteError` where the model has no such sites.
    """
    tokens = model.tokens(texts)
    sites = model.sites([f"{kind}.*" for kind in kinds])
    sums: dict[str, Tensor] = {}
    total = int(tokens.mask.sum())
    for start in range(0, len(tokens.ids), batch):
        ids, mask = tokens.ids[start : start + batch], tokens.mask[start : start + batch].bool()
        run = model.run(ids, attention_mask=mask, record=sites, stop=True)
        for site in sites:
            x = run[site][mask.to(model.device)].flatten(1).double()
            part = torch.stack([x.abs().sum(0), x.square().sum(0), x.sum(0), (x > 0).double().sum(0)]).cpu()
            sums[str(site)] = sums.get(str(site), torch.zeros_like(part)) + part
    means = {site: part / total for site, part in sums.items()}
    return Activity(
        {
            "abs": {site: m[0] for site, m in means.items()},
            "rms": {site: m[1].sqrt() for site, m in means.items()},
            "std": {site: (m[1] - m[2].square()).clamp_min(0).sqrt() for site, m in means.items()},
            "freq": {site: m[3] for site, m in means.items()},
        },
        total,
    )


def choose(
    forget: Activity,
    retain: Activity | None,
    *,
    mlp: float = 0.0,
    attention: float = 0.0,
    score: Score = "abs",
    eps: float = 1e-5,
    beside: Units | None = None,
) -> Units:
    """The share `mlp` of all neurons and `attention` of all value channels with the highest scores, over all layers.

    Without `retain` the score is the importance to `forget` alone. Units of `beside` are not chosen again.
    """
    chosen: dict[str, Tensor] = {}
    for kind, share in (("mlp_post", mlp), ("z", attention)):
        if not 0 <= share <= 1:
            raise EditError(f"{share} is no share of the units; it lies between 0 and 1")
        if share == 0:
            continue
        if kind == "z" and score == "freq":
            raise EditError("freq counts how often a unit is positive; the sign of a value channel means nothing")
        mine = {site: x for site, x in forget[score].items() if site.startswith(f"{kind}.")}
        if not mine:
            raise EditError(f"the activity has no {kind} sites")
        ratio = {s: x if retain is None else x / (retain[score][s] + eps) for s, x in mine.items()}
        for site, gone in ({} if beside is None else beside.of_site).items():
            if site in ratio:
                ratio[site] = ratio[site].index_fill(0, gone, -torch.inf)
        every = torch.cat(list(ratio.values()))
        most = round(share * len(every))
        picked = torch.zeros(len(every), dtype=torch.bool)
        picked[every.argsort(descending=True, stable=True)[:most]] = True
        picked &= every > -torch.inf
        for site, part in zip(ratio, picked.split([len(x) for x in ratio.values()]), strict=True):
            chosen[site] = part.nonzero().flatten()
    return Units.of(chosen)


def next_token_accuracy(model: Model, texts: Any, *, batch: int = 64) -> Float[Tensor, "prompt"]:
    """Share of each text's tokens, from its second on, that the model finds the likeliest."""
    tokens = model.tokens(texts)
    found = []
    for start in range(0, len(tokens.ids), batch):
        ids, mask = tokens.ids[start : start + batch].cpu(), tokens.mask[start : start + batch].bool().cpu()
        logits = model.run(ids, attention_mask=mask).logits
        assert logits is not None
        predicted = mask[:, 1:] & mask[:, :-1]
        right = (logits[:, :-1].argmax(-1).cpu() == ids[:, 1:]) & predicted
        found.append(right.sum(1) / predicted.sum(1))
    return torch.cat(found)


@dataclass(frozen=True)
class Step:
    """After one step: the share of units that are gone, and accuracy on what is to be forgotten and to be kept."""

    removed: float
    forget: float
    retain: float


@dataclass(frozen=True, eq=False)
class Pruning:
    """The units that were removed, the edit that removes them, the curve (its first point is the model as it was), and
    why it ended: "forgotten", "budget" (the last step cost too much of the rest and was taken back) or "steps".
    """

    units: Units
    edit: Edit
    curve: tuple[Step, ...]
    stopped: Literal["forgotten", "budget", "steps"]

    def rows(self) -> list[dict[str, float]]:
        """The curve as a table."""
        return [{"removed": s.removed, "forget": s.forget, "retain": s.retain} for s in self.curve]


Measure = Callable[[Model], float]


def prune(
    model: Model,
    forget: Any,
    retain: Any,
    *,
    mlp: float = 0.02,
    attention: float = 0.0,
    steps: int = 1,
    until: float = 0.0,
    budget: float = 1.0,
    score: Score = "abs",
    measures: tuple[Measure, Measure] | None = None,
) -> Pruning:
    """Remove a share of the units a step, scored anew on what is left, until the skill is at `until` of what it was.

    `forget` and `retain` are texts. It also ends before a step that would cost more than `budget` of the accuracy on
    what is to be kept. `measures` are those of the skill and of the rest; next-token accuracy on the two texts if not
    given. The model itself is left as it was.
    """
    if mlp == 0 and attention == 0:
        raise EditError("mlp and attention are both 0: there is nothing to remove")
    skill, rest = measures or (
        lambda m: float(next_token_accuracy(m, forget).mean()),
        lambda m: float(next_token_accuracy(m, retain).mean()),
    )
    kinds = [kind for kind, share in (("mlp_post", mlp), ("z", attention)) if share]
    units = Units.of({})
    curve = [Step(0.0, skill(model), rest(model))]
    start, total, stopped = curve[0], 0, "steps"
    for _ in track(range(steps), "pruning"):
        with units.removal(model).applied(model):
            mine, theirs = (activity(model, texts, kinds=kinds) for texts in (forget, retain))
        total = sum(len(x) for x in mine["abs"].values())
        more = units | choose(mine, theirs, mlp=mlp, attention=attention, score=score, beside=units)
        with more.removal(model).applied(model):
            step = Step(len(more) / total, skill(model), rest(model))
        curve.append(step)
        if step.retain < (1 - budget) * start.retain:
            stopped = "budget"
            break
        units = more
        if step.forget <= until * start.forget:
            stopped = "forgotten"
            break
    edit = units.removal(model)
    about = {"score": score, "mlp": mlp, "attention": attention, "stopped": stopped}
    return Pruning(units, Edit(edit.changes, "selective pruning", {**edit.provenance, **about}), tuple(curve), stopped)
