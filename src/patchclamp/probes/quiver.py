"""Several kinds of probe, and the one that its own cross-validation prefers: what a practitioner would have picked.

    arrows = {"logistic": [Logistic(C=c) for c in (0.01, 1)], "neighbours": [NearestNeighbours(k) for k in (1, 8)]}
    quiver = Quiver(arrows).fit(x, y)              # x [..., row, d], y [row]
    quiver.chosen_, quiver.validation_             # the best arrow of each site, and what it promised
    quiver.decision_function(x_test)

A method is worth having if a quiver with it does better on the test than the quiver without (Kantamneni et al. 2025,
arXiv:2502.16681). The test plays no part in the choice.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.probes.estimator import Estimator, single
from patchclamp.probes.measures import Measure, auc, by_name

FOLDS = 6


def splits(y: Float[Tensor, " row"], *, seed: int = 0) -> list[Int[Tensor, " left_out"]]:
    """The rows to leave out, time after time, by how many there are.

    Three or fewer: none, so that the first setting is taken. Up to 12: a row of each value. Below 128: six folds with
    each value's share. Above: a fifth of the rows, at most 100, once.
    """
    generator = torch.Generator().manual_seed(seed)
    order = [(y == value).nonzero()[:, 0] for value in (1, 0)]
    order = [rows[torch.randperm(len(rows), generator=generator)] for rows in order]
    least = min(map(len, order))
    if len(y) <= 3 or least < 2:
        return []
    if len(y) <= 12:
        return [
            torch.stack([order[0][i % len(order[0])], order[1][i % len(order[1])]]) for i in range(max(map(len, order)))
        ]
    if len(y) < 128:
        folds = min(FOLDS, least)
        return [torch.cat([rows[i::folds] for rows in order]) for i in range(folds)]
    out = min(len(y) / 5, 100) / len(y)
    return [torch.cat([rows[: max(1, round(out * len(rows)))] for rows in order])]


@dataclass(eq=False)
class Quiver:
    """The arrow, and its setting, with the best measure on rows left out; chosen for each site on its own.

    `arrows` are lists of estimators by name, the default setting first. y is [row], the same at each site: where tasks
    have their own rows, give each site its rows with those of yes first. `validation_` is [arrow] -> [...].
    """

    arrows: Mapping[str, Sequence[Estimator]]
    measure: "str | Measure" = "auc"
    seed: int = 0
    validation_: dict[str, Tensor] = field(init=False, repr=False)
    settings_: dict[str, Tensor] = field(init=False, repr=False)

    def fit(self, x: Any, y: Any) -> Self:
        """Cross-validate every setting of every arrow, then fit them all on all rows."""
        x, y = torch.as_tensor(x), torch.as_tensor(y).float()
        if y.ndim != 1 or len(y) != x.shape[-2]:
            raise ValueError(f"y is {tuple(y.shape)}: expected [{x.shape[-2]}], the labels of the rows at every site")
        if not self.arrows or not all(self.arrows.values()):
            raise ValueError("a quiver needs arrows, each with one setting at least")
        left = splits(y, seed=self.seed)
        measure = by_name(self.measure)
        self._sites = x.shape[:-2]
        self.validation_, self.settings_, self._fitted = {}, {}, {}
        for name, settings in self.arrows.items():
            scores = torch.stack([_validated(setting, x, y, left, measure) for setting in settings])
            self.settings_[name] = scores.argmax(0)
            self.validation_[name] = scores.amax(0)
            self._fitted[name] = [copy.copy(setting).fit(x, y) for setting in settings]
        return self

    @property
    def chosen_(self) -> "str | list":
        """The name of the best arrow at each site, nested as the sites are."""
        return _named(self.choice(), list(self.arrows))

    def choice(self, among: Sequence[str] | None = None) -> Int[Tensor, "*site"]:
        """The index of the best of some arrows (all, unless named), by validation."""
        return torch.stack([self.validation_[name] for name in among or self.arrows]).argmax(0)

    def decision_function(self, x: Any, among: Sequence[str] | None = None) -> Float[Tensor, "*site row"]:
        """Of the best arrow of some (all, unless named), in its best setting, at each site."""
        names = list(among or self.arrows)
        each = torch.stack([self.of(name, x) for name in names])
        index = self.choice(names)[None, ..., None].expand(1, *each.shape[1:])
        return each.gather(0, index)[0]

    def of(self, name: str, x: Any) -> Float[Tensor, "*site row"]:
        """Of one arrow in its best setting at each site."""
        each = torch.stack([fit.decision_function(x) for fit in self._fitted[name]])
        index = self.settings_[name][None, ..., None].expand(1, *each.shape[1:])
        return each.gather(0, index)[0]

    def predict(self, x: Any) -> Int[Tensor, "*site row"]:
        """0 or 1 for each row."""
        return (self.decision_function(x) > 0).long()

    def score(self, x: Any, y: Any) -> "float | Tensor":
        """The measure on other rows."""
        decision = self.decision_function(x)
        return single(by_name(self.measure)(decision, torch.as_tensor(y).expand(decision.shape)))


def _validated(
    setting: Estimator, x: Tensor, y: Tensor, left: list[Tensor], measure: Measure = auc
) -> Float[Tensor, "*site"]:
    """Mean measure over the splits; the first setting wins where there are none."""
    if not left:
        return torch.zeros(x.shape[:-2], dtype=torch.float64)
    scores = []
    for out in left:
        kept = torch.ones(len(y), dtype=torch.bool)
        kept[out] = False
        decision = copy.copy(setting).fit(x[..., kept, :], y[kept]).decision_function(x[..., out, :])
        scores.append(measure(decision, y[out].expand(decision.shape)).cpu())
    return torch.stack(scores).mean(0)


def _named(index: Tensor, names: list[str]) -> "str | list":
    return names[int(index)] if index.ndim == 0 else [_named(part, names) for part in index]
