"""What a model does on a task before anything is changed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics

Interval = tuple[float, float]


@dataclass(frozen=True)
class Baseline:
    """Accuracy and a metric on clean and corrupted prompts; intervals are 95 % bootstrap intervals over prompts.

    Accuracy: the best right answer beats the best wrong answer. `top1`: the most probable token of all is a right
    answer.
    """

    task: str
    metric: str
    n: int
    accuracy: float
    accuracy_interval: Interval
    top1: float
    corrupted_accuracy: float
    clean: float
    clean_interval: Interval
    corrupted: float
    corrupted_interval: Interval
    gap_interval: Interval

    @property
    def holds(self) -> bool:
        """Enough to go on: right more often than a coin toss, and the corruption moves the metric, both beyond the
        95 % interval.
        """
        low, high = self.gap_interval
        return self.accuracy_interval[0] > 0.5 and (low > 0 or high < 0)

    def __str__(self) -> str:
        return (
            f"{self.task}: accuracy {self.accuracy:.1%} "
            f"[{self.accuracy_interval[0]:.1%}, {self.accuracy_interval[1]:.1%}] "
            f"(top-1 {self.top1:.1%}; corrupted {self.corrupted_accuracy:.1%}), {self.metric} {self.clean:.3f} clean, "
            f"{self.corrupted:.3f} corrupted, {self.n} prompts"
        )


def measure_baseline(model: Any, task: Any, *, metric: str | Callable, seed: int = 0, batch: int = 64) -> Baseline:
    """Run a task's clean and corrupted prompts; `model.run(ids, attention_mask=mask).logits` is all that is asked of
    the model.
    """
    measure = metrics.by_name(metric) if isinstance(metric, str) else metric
    clean, corrupted = (_answer_logits(model, task, side, batch) for side in ("clean", "corrupt"))
    values, bad_values = measure(clean, task), measure(corrupted, task)
    right = metrics.accuracy(clean, task)
    resamples = _resamples(len(task), seed)
    return Baseline(
        task=task.name,
        metric=metric if isinstance(metric, str) else getattr(metric, "__name__", "metric"),
        n=len(task),
        accuracy=float(right.mean()),
        accuracy_interval=_interval(right, resamples),
        top1=float(metrics.top1(clean, task).mean()),
        corrupted_accuracy=float(metrics.accuracy(corrupted, task).mean()),
        clean=float(values.mean()),
        clean_interval=_interval(values, resamples),
        corrupted=float(bad_values.mean()),
        corrupted_interval=_interval(bad_values, resamples),
        gap_interval=_interval(values - bad_values, resamples),
    )


def _answer_logits(model: Any, task: Any, side: str, batch: int) -> Float[Tensor, "prompt vocab"]:
    parts = []
    with torch.no_grad():
        for start in range(0, len(task), batch):
            some = task[start : start + batch]
            logits = model.run(getattr(some, side), attention_mask=some.mask).logits
            parts.append(some.at_answer(logits).float().cpu())
    return torch.cat(parts)


def _resamples(n: int, seed: int, times: int = 2000) -> Tensor:
    return torch.randint(n, (times, n), generator=torch.Generator().manual_seed(seed))


def _interval(values: Float[Tensor, " prompt"], resamples: Tensor) -> Interval:
    """Percentile bootstrap. Prompts that all agree give no width, so 0/1 values get the Wilson interval's bound
    instead.
    """
    values = values.cpu().double()
    low, high = values[resamples].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    if ((values == 0) | (values == 1)).all():
        p, n, z = float(values.mean()), len(values), 1.959964
        centre, half = (
            (p + z * z / (2 * n)) / (1 + z * z / n),
            z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5,
        )
        low, high = min(low, centre - half), max(high, min(1.0, centre + half))
    return low, high
