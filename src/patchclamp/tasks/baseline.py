"""What a model does on a task before anything is changed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.intervals import Interval, bootstrap


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
    return Baseline(
        task=task.name,
        metric=metric if isinstance(metric, str) else getattr(metric, "__name__", "metric"),
        n=len(task),
        accuracy=float(right.mean()),
        accuracy_interval=bootstrap(right, seed),
        top1=float(metrics.top1(clean, task).mean()),
        corrupted_accuracy=float(metrics.accuracy(corrupted, task).mean()),
        clean=float(values.mean()),
        clean_interval=bootstrap(values, seed),
        corrupted=float(bad_values.mean()),
        corrupted_interval=bootstrap(bad_values, seed),
        gap_interval=bootstrap(values - bad_values, seed),
    )


def _answer_logits(model: Any, task: Any, side: str, batch: int) -> Float[Tensor, "prompt vocab"]:
    parts = []
    with torch.no_grad():
        for start in range(0, len(task), batch):
            some = task[start : start + batch]
            logits = model.run(getattr(some, side), attention_mask=some.mask).logits
            parts.append(some.at_answer(logits).float().cpu())
    return torch.cat(parts)
