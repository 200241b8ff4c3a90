"""What goes when latents are ablated: the one concept meant (TPP), or a spurious one that a probe has leaned on (SCR).

    targeted(dictionary, data, ns=(1, 2, 5))                                # {"tpp@1": [concept], ...}
    spurious(dictionary, data, wanted=0, unwanted=1, ns=(1, 2, 5))          # {"scr@1": score, ...}

Karvonen et al. 2025 (arXiv:2503.09532), after Marks et al. 2024 (arXiv:2403.19647, SHIFT). An ablation
takes what the latents add out of the activation, and leaves the dictionary's error in.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.dictionaries import Dictionary
from patchclamp.evaluation import heads
from patchclamp.evaluation.labelled import FEWEST, Labelled, latents, moved, shuffled
from patchclamp.evaluation.probing import differences

Ablation = Literal["zero", "mean"]

SMALLEST_GAP = 0.05
"""What a probe must lose by the spurious concept: there is nothing to win back where it loses less."""


def effects(
    dictionary: Dictionary,
    codes: Float[Tensor, "row width"],
    holds: Bool[Tensor, "row concept"],
    weight: Float[Tensor, "concept d"],
    only_more: bool = False,
) -> Float[Tensor, "concept width"]:
    """(E[f_j | concept] - E[f_j | not]) (w . d_j): what latent j does to the concept's linear head.

    `only_more`: of latents that are larger where the concept holds, and 0 for others.
    """
    decoder = torch.nn.functional.normalize(dictionary.W_dec.double(), dim=-1)
    difference = differences(codes, holds)
    return (difference.clamp_min(0) if only_more else difference) * (weight.double() @ decoder.T)


def strongest(effect: Float[Tensor, " width"], n: int) -> Int[Tensor, " some"]:
    """The n latents of largest effect; those without one are never chosen."""
    order = effect.argsort(descending=True, stable=True)[:n]
    return order[effect[order] > 0]


def targeted(
    dictionary: Dictionary, data: Labelled, *, ns: Sequence[int] = (1, 2, 5), seed: int = 0
) -> dict[str, np.ndarray]:
    """Targeted probe perturbation, [concept]: how much accuracy the concept's own probe loses when its n latents of
    largest effect are ablated, less what the others' probes lose on average. At most 0.5, where guessing is left.

    Only latents that are larger where the concept holds are its own.
    """
    if len(data.names) < 2:
        raise ValueError(f"targeted ablation compares concepts, and there is only {data.names}")
    train, test = data.halves(seed)
    probes = heads.fit(train)
    effect = effects(dictionary, latents(dictionary, train.x), train.holds, probes.weight, only_more=True)
    now = latents(dictionary, test.x)
    clean = heads.accuracy(probes.decision(test.x) > 0, test.holds)
    found = {f"tpp@{n}": np.zeros(len(data.names)) for n in ns}
    for concept in range(len(data.names)):
        for n in ns:
            x = moved(dictionary, test.x, now, strongest(effect[concept], n))
            lost = clean - heads.accuracy(probes.decision(x) > 0, test.holds)
            found[f"tpp@{n}"][concept] = lost[concept] - np.delete(lost, concept).mean()
    return found


def spurious(
    dictionary: Dictionary,
    data: Labelled,
    *,
    wanted: int,
    unwanted: int,
    ns: Sequence[int] = (1, 2, 5),
    to: Ablation = "zero",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Spurious correlation removal, one number for each n: what an ablation of the unwanted concept's latents wins back
    of the accuracy that a probe lost by learning both concepts as one.

    The biased probe is learned from rows in which both hold or neither does, and tested on rows of all four kinds, as
    many of each: (ablated - biased) / (clean - biased), clean being a probe that was learned on all four kinds. Of the
    two concepts, the one on which the biased probe does worse is asked for, and the other is ablated, by latents of
    largest absolute effect on its own probe. NaN where the biased probe has lost less than 0.05: there is nothing to
    win back.

    The paper ablates to zero. That moves every row to the side of "no" of a probe whose bias has learned to expect the
    unwanted concept in half of the rows; an ablation to the mean does not.
    """
    if to not in ("zero", "mean"):
        raise ValueError(f"to={to!r}: latents are ablated to 'zero' or to their 'mean'")
    train, test = data.only([wanted, unwanted]).halves(seed)
    learn, asked = train[_four_kinds(train, seed)], test[_four_kinds(test, seed)]
    clean = heads.fit(learn)
    biased = heads.fit(learn[learn.holds[:, 0] == learn.holds[:, 1]].only([0]))

    def right(x: Float[Tensor, "row d"]) -> np.ndarray:
        return heads.accuracy((biased.decision(x) > 0).expand(-1, 2), asked.holds)

    before = right(asked.x)
    target = int(before[1] < before[0])
    gap = heads.accuracy(clean.decision(asked.x) > 0, asked.holds)[target] - before[target]
    codes, now = latents(dictionary, learn.x), latents(dictionary, asked.x)
    effect = effects(dictionary, codes, learn.holds, clean.weight)[1 - target].abs()
    found = {}
    for n in ns:
        which = strongest(effect, n)
        if to == "zero":
            x = moved(dictionary, asked.x, now, which)
        else:
            rows = torch.nn.functional.normalize(dictionary.W_dec[which], dim=-1)
            x = asked.x + (codes[:, which].mean(0) - now[:, which]) @ rows
        found[f"scr@{n}"] = np.array([(right(x)[target] - before[target]) / gap if gap >= SMALLEST_GAP else np.nan])
    return found


def _four_kinds(data: Labelled, seed: int) -> Int[Tensor, " some"]:
    """Rows in which neither holds, only the second, only the first, both: as many of each."""
    kind = 2 * data.holds[:, 0].long() + data.holds[:, 1].long()
    cells = [(kind == i).nonzero().flatten() for i in range(4)]
    n = min(map(len, cells))
    if n < FEWEST:
        counts = ", ".join(str(len(cell)) for cell in cells)
        raise ValueError(
            f"of {' and '.join(data.names)}, neither, only the second, only the first, and both hold in {counts} rows: "
            f"spurious correlation removal needs {FEWEST} of each kind"
        )
    return torch.cat([cell[shuffled(len(cell), seed + i)[:n]] for i, cell in enumerate(cells)])
