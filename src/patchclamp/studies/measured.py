"""What one claim measured, beside what its control measured, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchclamp.intervals import Interval, wilson

RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """A number and its 95 % interval, and the same of the control. Made by the class methods below.

    An undefined number (a correlation with a constant, say) is NaN: it passes no threshold.
    """

    value: float
    interval: Interval
    control: float | None = None
    control_interval: Interval | None = None

    @classmethod
    def mean(cls, values: Any, *, control: Any = None, seed: int = 0) -> "Measured":
        """Mean over prompts (or pairs, or seeds), with the percentile bootstrap over them; so too the control.

        Raises `ValueError` for fewer than two values: they have no interval.

        >>> Measured.mean([0.8, 1.0, 0.9, 0.9], control=[0.1, 0.0, 0.2, 0.1]).value
        0.9
        """
        return cls._of(_bootstrap, values, control, seed)

    @classmethod
    def share(cls, hits: Any, *, control: Any = None) -> "Measured":
        """Share of hits, which are true or false (or 1 and 0), with Wilson's interval."""
        return cls._of(_wilson, hits, control, 0)

    @classmethod
    def number(cls, value: Any, *, control: Any = None) -> "Measured":
        """A number that was not sampled; its interval is the number itself, so that it must beat its control strictly.

        A control that was drawn several times (random sets, other seeds) is a sequence, and its interval is its range.
        """
        value = float(value)
        if control is None:
            return cls(value, (value, value))
        drawn = np.atleast_1d(_numbers(control, "control"))
        return cls(value, (value, value), float(drawn.mean()), (float(drawn.min()), float(drawn.max())))

    @classmethod
    def gap(cls, a: Any, b: Any, *, control: "tuple[Any, Any] | None" = None) -> "Measured":
        """The largest absolute difference between two results of one shape, for identities.

        `control` is a pair of results that must differ. Raises `ValueError` for shapes that differ.

        >>> Measured.gap([1.0, 2.0], [1.0, 2.5]).value
        0.5
        """
        value = _gap(a, b)
        other = None if control is None else _gap(*control)
        return cls(value, (value, value), other, None if other is None else (other, other))

    @classmethod
    def _of(cls, summarise: Any, values: Any, control: Any, seed: int) -> "Measured":
        value, interval = summarise(_numbers(values, "values"), seed)
        if control is None:
            return cls(value, interval)
        return cls(value, interval, *summarise(_numbers(control, "control"), seed))


def _numbers(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    elif isinstance(values, Sequence):
        values = [value.detach().cpu() if hasattr(value, "detach") else value for value in values]
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name} is empty: nothing was measured")
    return array


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, Interval]:
    values = values.ravel()
    if len(values) < 2:
        raise ValueError("the mean of one value has no interval; a number that was not sampled is Measured.number(...)")
    picks = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))


def _wilson(hits: np.ndarray, seed: int) -> tuple[float, Interval]:
    hits = hits.ravel()
    if not np.isin(hits, (0.0, 1.0)).all():
        raise ValueError("share takes hits, each true or false; the mean of other numbers is Measured.mean(...)")
    share = float(hits.mean())
    return share, wilson(share, len(hits))


def _gap(a: Any, b: Any) -> float:
    left, right = _numbers(a, "the first result"), _numbers(b, "the second result")
    if left.shape != right.shape:
        raise ValueError(f"gap compares results of one shape, not {list(left.shape)} with {list(right.shape)}")
    return float(np.abs(left - right).max())
