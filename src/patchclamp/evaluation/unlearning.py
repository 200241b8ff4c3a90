"""Forgetting one thing by clamping latents, with the rest unharmed.

    forgetting(dictionary, forget_x, retain_x, accuracy)       # accuracy(edit) -> (of what to forget, of the rest)
    of_concepts(dictionary, data)                              # {"forgotten": [concept]}, asked of linear heads

Farrell et al. 2024 (arXiv:2410.19278), scored as in Karvonen et al. 2025 (arXiv:2503.09532): one minus the
lowest accuracy on what is to be forgotten, over all settings that leave 99 % of the accuracy on the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.dictionaries import Dictionary
from patchclamp.evaluation import heads
from patchclamp.evaluation.labelled import Labelled, latents, moved


@dataclass(frozen=True, eq=False)
class Clamp:
    """An edit of activations, `edit(x)`: these latents, where they are active, are `to` (in units of `latents`)."""

    dictionary: Dictionary
    which: Int[Tensor, " some"]
    to: Float[Tensor, " some"]

    def __call__(self, x: Float[Tensor, "*row d"], now: Float[Tensor, "row width"] | None = None) -> Tensor:
        """`now` are the latents of `x`, where they are known already."""
        rows = x.reshape(-1, x.shape[-1]).to(self.dictionary.W_dec)
        now = latents(self.dictionary, rows) if now is None else now
        return moved(self.dictionary, rows, now, self.which, self.to.to(rows)).reshape(x.shape).to(x.dtype)


Accuracy = Callable[[Clamp], tuple[float, float]]
"""Accuracies on what is to be forgotten and on the rest, with activations edited so: in a model, or by linear heads."""


@dataclass(frozen=True)
class Forgetting:
    """The best setting that kept the rest: `score` is 1 minus its accuracy on what was to be forgotten.

    `untouched` are the accuracies before anything is clamped. Where no setting keeps the rest, it is that nothing is
    clamped: no latents.
    """

    score: float
    forget: float
    retain: float
    untouched: tuple[float, float]
    latents: tuple[int, ...]
    strength: float


def forgetting(
    dictionary: Dictionary,
    forget: Float[Tensor, "row d"],
    retain: Float[Tensor, "row d"],
    accuracy: Accuracy,
    *,
    ns: Sequence[int] = (1, 5, 10),
    strengths: Sequence[float] = (0.0, 1.0, 3.0),
    rare: Sequence[float] = (0.001, 0.01),
    keep: float = 0.99,
) -> Forgetting:
    """Clamp latents where they are active to -strength times their mean active value, and see what is forgotten.

    Of the latents that are active in less than `rare` of the retained rows, the n that are active in most of the rows
    to forget. (The paper clamps to -25 to -200 in units of one model; in multiples of a latent's own size, the same
    strengths serve every model.)
    """
    codes, others = latents(dictionary, forget), latents(dictionary, retain)
    often, elsewhere = (codes != 0).double().mean(0), (others != 0).double().mean(0)
    size = codes.double().sum(0) / (codes != 0).sum(0).clamp_min(1)
    none = torch.zeros(0, dtype=torch.long)
    before = accuracy(Clamp(dictionary, none, size[none]))
    best = Forgetting(1 - before[0], *before, untouched=before, latents=(), strength=0.0)
    tried: set[tuple[tuple[int, ...], float]] = set()
    for most, n, strength in product(rare, ns, strengths):
        order = torch.where(elsewhere < most, often, 0.0).argsort(descending=True, stable=True)[:n]
        chosen = order[(often[order] > 0) & (elsewhere[order] < most)]
        setting = (tuple(chosen.tolist()), strength)
        if not len(chosen) or setting in tried:
            continue
        tried.add(setting)
        now = accuracy(Clamp(dictionary, chosen, -strength * size[chosen]))
        if now[1] >= keep * before[1] and now[0] < best.forget:
            best = Forgetting(1 - now[0], *now, untouched=before, latents=setting[0], strength=strength)
    return best


def of_concepts(dictionary: Dictionary, data: Labelled, *, seed: int = 0) -> dict[str, np.ndarray]:
    """For each concept the score of forgetting it: its head's hits on rows that have it, against how well all other
    heads do on rows that do not have it.
    """
    if len(data.names) < 2:
        raise ValueError(f"what is forgotten is compared with what is kept, and there is only {data.names}")
    train, test = data.halves(seed)
    probes, codes = heads.fit(train), latents(dictionary, test.x)
    found = []
    for concept in range(len(data.names)):
        has = test.holds[:, concept]
        others = [i for i in range(len(data.names)) if i != concept]

        def accuracy(
            edit: Clamp, concept: int = concept, has: Tensor = has, others: list[int] = others
        ) -> tuple[float, float]:
            said = probes.decision(edit(test.x, codes)) > 0
            rest = heads.accuracy(said[~has][:, others], test.holds[~has][:, others])
            return float(said[has, concept].double().mean()), float(np.nanmean(rest))

        learned = train.holds[:, concept]
        found.append(forgetting(dictionary, train.x[learned], train.x[~learned], accuracy).score)
    return {"forgotten": np.array(found)}
