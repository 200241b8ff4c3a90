"""Which heads does the behaviour need? Chosen on one half of the prompts, judged on the other, beside random heads.

Heads are added one at a time, each time the one whose ablation beside those already chosen lowers the metric most, so
that a backup head which takes over from a mover is found as well; the list ends where accuracy is that of a coin and
next to nothing of the logit difference is left.
Choosing ablates to zero and to the mean over the task's tokens, and believes the milder of the two; the named set is
judged under these and under resample ablation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from torch import Tensor

from patchclamp import metrics
from patchclamp.intervals import wilson
from patchclamp.interventions import Intervention, ablate, patch
from patchclamp.model import Model
from patchclamp.recording import Recording
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress

CHANCE = 0.5
"""Accuracy of a coin between the right answers and the wrong ones."""

_LEFT = 0.05  # of the metric: what may be left of it
_CANDIDATES = 12
_MOST = 1 / 3  # of all heads: more than that is no explanation


@dataclass(frozen=True)
class Ablation:
    """Accuracy and metric on held-out prompts with a set of heads ablated; accuracy with random sets of that size."""

    kind: str
    accuracy: float
    metric: float
    random_accuracy: tuple[float, ...]
    prompts: int

    @property
    def interval(self) -> tuple[float, float]:
        """2.5 % and 97.5 % quantiles of accuracy over the random sets."""
        low, high = np.quantile(self.random_accuracy, [0.025, 0.975])
        return float(low), float(high)

    @property
    def reaches(self) -> float:
        """The lower end of accuracy's 95 % interval over the prompts (Wilson): what chance is compared with."""
        return wilson(self.accuracy, self.prompts)[0]

    @property
    def holds(self) -> bool:
        """At chance or below (to the prompts' uncertainty), where random sets of as many heads stay above."""
        return self.reaches <= CHANCE < self.interval[0] and self.accuracy < self.interval[0]


@dataclass(frozen=True)
class Heads:
    """The named heads in the order in which they were found, the accuracy after each, and the ablations of the set."""

    named: tuple[str, ...]
    accuracy_after: tuple[float, ...]
    ablations: tuple[Ablation, ...]
    clean_accuracy: float

    @property
    def holds(self) -> bool:
        return bool(self.named) and self.ablations[0].holds


def find(model: Model, choose: Task, judge: Task, effects: xr.DataArray, *, seed: int = 0, sets: int = 20) -> Heads:
    """Name heads on the task `choose`, from the strongest of `effects` (layer x head), and judge them on `judge`."""
    strength = {
        Site("z", int(layer), int(head)): abs(float(effects.sel(layer=layer, head=head)))
        for layer in effects["layer"].values
        for head in effects["head"].values
    }
    every = sorted((site for site in strength if site.whole in model.anatomy.taps), key=lambda s: -strength[s])
    means = _means(model, choose)
    remains = _LEFT * abs(_measure(model, choose, ())[1])
    left = float("inf")
    named: list[Site] = []
    after: list[float] = []
    most = max(1, int(_MOST * len(every)))
    with progress("naming heads", most) as advance:
        while len(named) < most and (not after or after[-1] > CHANCE or left > remains):
            candidates = [site for site in every if site not in named][:_CANDIDATES]
            scores = [_worst(model, choose, [*named, site], means) for site in candidates]
            best = min(range(len(candidates)), key=lambda i: scores[i][1])
            named.append(candidates[best])
            after.append(scores[best][0])
            left = scores[best][1]
            advance()
    end = after.index(min(after)) + 1  # where chance was not reached: no more heads than the best accuracy took
    named, after = named[:end], after[:end]
    return Heads(
        named=tuple(str(site) for site in named),
        accuracy_after=tuple(after),
        ablations=_judge(model, judge, named, every, _means(model, judge), seed, sets),
        clean_accuracy=_measure(model, judge, ())[0],
    )


def _judge(
    model: Model,
    task: Task,
    named: list[Site],
    every: list[Site],
    means: dict[Site, Tensor],
    seed: int,
    sets: int,
) -> tuple[Ablation, ...]:
    """The named set and random sets of the other heads, under three kinds of ablation."""
    corrupted = model.run(task.corrupt, record="z.*", attention_mask=task.mask).recording
    rng = np.random.default_rng(seed)
    others = [site for site in every if site not in named] or every
    size = min(len(named), len(others))
    drawn = [[others[i] for i in rng.choice(len(others), size, replace=False)] for _ in range(sets)]
    kinds = {
        "mean": lambda heads: _mean_ablation(heads, means),
        "zero": lambda heads: [ablate(site) for site in heads],
        "resample": lambda heads: _resample_ablation(heads, corrupted),
    }
    found = []
    with progress("ablating named and random heads", len(kinds) * sets) as advance:
        for kind, make in kinds.items():
            accuracy, value = _measure(model, task, make(named))
            random = []
            for heads in drawn:
                random.append(_measure(model, task, make(heads))[0])
                advance()
            found.append(Ablation(kind, accuracy, value, tuple(random), len(task)))
    return tuple(found)


def _means(model: Model, task: Task) -> dict[Site, Tensor]:
    """Mean z of each layer over clean and corrupted prompts, [head, d_head]."""
    runs = [model.run(side, record="z.*", attention_mask=task.mask).recording for side in (task.clean, task.corrupt)]
    return {site: (runs[0].mean(site) + runs[1].mean(site)) / 2 for site in runs[0]}


def _mean_ablation(heads: Sequence[Site], means: dict[Site, Tensor]) -> list[Intervention]:
    return [ablate(site, to=means[site.whole][site.unit]) for site in heads]


def _resample_ablation(heads: Sequence[Site], corrupted: Recording) -> list[Intervention]:
    return [patch(site, corrupted) for site in heads]


def _worst(model: Model, task: Task, heads: Sequence[Site], means: dict[Site, Tensor]) -> tuple[float, float]:
    """(accuracy, metric), the higher of mean and zero ablation: what both of them bring it down to."""
    results = [_measure(model, task, do) for do in (_mean_ablation(heads, means), [ablate(site) for site in heads])]
    return max(r[0] for r in results), max(r[1] for r in results)


def _measure(model: Model, task: Task, do: Sequence[Intervention]) -> tuple[float, float]:
    """(accuracy, mean logit difference) on the clean prompts."""
    logits = model.run(task.clean, do=do, attention_mask=task.mask).logits
    assert logits is not None
    at = task.at_answer(logits).float()
    return float(metrics.accuracy(at, task).mean()), float(metrics.logit_difference(at, task).mean())
