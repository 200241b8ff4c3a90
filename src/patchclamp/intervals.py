"""95 % intervals: of a mean over prompts, and of a share of hits.

low, high = bootstrap(values, seed=0)      # of their mean, by the percentile bootstrap
low, high = wilson(0.9, n=40)              # of 36 hits in 40
"""

import torch
from jaxtyping import Float
from torch import Tensor

Interval = tuple[float, float]

RESAMPLES = 2000
Z = 1.959964
"""Standard deviations of a normal distribution within which 95 % of it lies."""


def bootstrap(values: Float[Tensor, " prompt"], seed: int = 0) -> Interval:
    """Of the mean of `values`, from 2,000 resamples of them.

    Hits and misses (1 and 0) that all agree would give no width, so of these it is at least as wide as Wilson's.

    >>> low, high = bootstrap(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> 1 <= low < 2.5 < high <= 4
    True
    """
    values = values.cpu().double()
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    if ((values == 0) | (values == 1)).all():
        ends = wilson(float(values.mean()), len(values))
        low, high = min(low, ends[0]), max(high, ends[1])
    return low, high


def wilson(share: float, n: int) -> Interval:
    """Of a share of hits among `n` (Wilson 1927), within 0 and 1.

    >>> [round(end, 3) for end in wilson(1.0, 20)]
    [0.839, 1.0]
    """
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
