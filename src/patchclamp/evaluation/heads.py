"""Linear readers of concepts, which stand in for the rest of a network: `heads = fit(data)`, `heads.decision(x) > 0`.

Where there is no model to ask, what a change of activations does is measured by what such heads then say. Shares are
balanced: rows with a concept and rows without count alike, so that 0.5 is what guessing gives.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchclamp.evaluation.labelled import FEWEST, Labelled
from patchclamp.probes.estimator import Probe
from patchclamp.probes.logistic import Logistic


def fit(data: Labelled) -> Probe:
    """A logistic regression for each concept. ValueError where one holds, or does not, in fewer than FEWEST rows."""
    for name, count in zip(data.names, data.holds.sum(0).tolist(), strict=True):
        if min(count, len(data) - count) < FEWEST:
            raise ValueError(
                f"{name} holds in {count} of {len(data)} rows of a half: a measure needs {FEWEST} with and without"
            )
    return Logistic(balanced=True, standardise=True).fit(data.x, data.holds).probe_


def sparse_said(
    learn: Float[Tensor, "row width"],
    judge: Float[Tensor, "other width"],
    holds: Bool[Tensor, "row concept"],
    chosen: list[list[int]],
) -> Bool[Tensor, "other concept"]:
    """What probes say that know only the chosen latents, as many for each concept, learned from `learn`."""
    some = torch.as_tensor(chosen)
    probe = Logistic(balanced=True, standardise=True).fit(learn.T[some].transpose(1, 2), holds.T).probe_
    return (probe.decision(judge.T[some].transpose(1, 2)) > 0).T


def accuracy(said: Bool[Tensor, "row concept"], holds: Bool[Tensor, "row concept"]) -> np.ndarray:
    """Balanced accuracy, [concept]: the mean of the shares that are right of those with and of those without."""
    hits, false = _rates(said, holds)
    return ((hits + 1 - false) / 2).numpy()


def f1(said: Bool[Tensor, "row concept"], holds: Bool[Tensor, "row concept"]) -> np.ndarray:
    """F1 score as it would be if each concept held in half of the rows, [concept]; 0 where nothing was found."""
    hits, false = _rates(said, holds)
    return (2 * hits / (1 + hits + false)).numpy()


def _rates(said: Tensor, holds: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the rows with and without each concept in which it is said."""
    with_it, without = holds.double(), (~holds).double()
    return (said * with_it).sum(0) / with_it.sum(0), (said * without).sum(0) / without.sum(0)
