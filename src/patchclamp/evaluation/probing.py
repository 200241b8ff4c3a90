"""How few latents tell a concept: k-sparse probing, and the latents over which a concept is split.

    accuracy(dictionary, data, ks=(1, 2, 5))          # {"accuracy@1": [concept], ...}
    main_latents(dictionary, data)                    # for each concept the latents that say it

The latents of largest difference in mean are chosen on one half, a logistic regression on them alone is learned there,
and judged on the other half (Gurnee et al. 2023, arXiv:2305.01610; Karvonen et al. 2025, arXiv:2503.09532).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.dictionaries import Dictionary
from patchclamp.evaluation import heads
from patchclamp.evaluation.labelled import Labelled, latents


def differences(
    codes: Float[Tensor, "row width"], holds: Bool[Tensor, "row concept"]
) -> Float[Tensor, "concept width"]:
    """E[f | concept] - E[f | not], in float64, so that the order of latents decides no tie."""
    codes, with_it, without = codes.double(), holds.double(), (~holds).double()
    return with_it.T @ codes / with_it.sum(0)[:, None] - without.T @ codes / without.sum(0)[:, None]


def accuracy(
    dictionary: Dictionary, data: Labelled, *, ks: Sequence[int] = (1, 2, 5), seed: int = 0
) -> dict[str, np.ndarray]:
    """Balanced accuracy on held-out rows of a probe on the k latents that differ most, for each concept."""
    train, test = data.halves(seed)
    learn, judge = latents(dictionary, train.x), latents(dictionary, test.x)
    order = _descending(differences(learn, train.holds).abs())
    return {
        f"accuracy@{k}": heads.accuracy(heads.sparse_said(learn, judge, train.holds, order[:, :k].tolist()), test.holds)
        for k in ks
    }


def full(data: Labelled, *, seed: int = 0) -> np.ndarray:
    """The same with all of the activation instead of k latents: what a plain linear probe gets, [concept]."""
    train, test = data.halves(seed)
    return heads.accuracy(heads.fit(train).decision(test.x) > 0, test.holds)


def main_latents(
    dictionary: Dictionary, data: Labelled, *, most: int = 10, gain: float = 0.03, seed: int = 0
) -> list[list[int]]:
    """For each concept the latents that say it: the first k by difference in mean, where a (k + 1)th would raise the F1
    score of a probe on them by no more than `gain` (Chanin et al. 2024, arXiv:2409.14507).

    F1 is judged on rows that the probe has not seen. More than one latent is a concept that was split.
    """
    train, test = data.halves(seed)
    learn, judge = latents(dictionary, train.x), latents(dictionary, test.x)
    order = _descending(differences(learn, train.holds))
    best, kept = np.zeros(len(data.names)), np.zeros(len(data.names), dtype=int)
    going = np.ones(len(data.names), dtype=bool)
    for k in range(1, min(most, dictionary.width) + 1):
        asked = going.nonzero()[0].tolist()
        said = heads.sparse_said(learn, judge, train.holds[:, asked], order[asked, :k].tolist())
        score = heads.f1(said, test.holds[:, asked])
        going[asked] = (score - best[asked] > gain) | (k == 1)
        better = [concept for concept in asked if going[concept]]
        best[better], kept[better] = score[going[asked]], k
        if not better:
            break
    return [order[concept, :k].tolist() for concept, k in enumerate(kept.tolist())]


def splitting(dictionary: Dictionary, data: Labelled, *, seed: int = 0) -> dict[str, np.ndarray]:
    """How many latents each concept is split over: 1 is one latent for one concept."""
    return {"latents": np.array([len(some) for some in main_latents(dictionary, data, seed=seed)], dtype=float)}


def _descending(values: Float[Tensor, "concept width"]) -> Int[Tensor, "concept width"]:
    return torch.argsort(values, dim=-1, descending=True, stable=True)
