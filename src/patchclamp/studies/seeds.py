"""A claim over three seeds in a full run, over one in a quick one.

    @study.finding("...", at_least=0.9, control="...")
    @over_seeds
    def works(lab: Lab) -> Measured:        # measures with lab.seed alone: data, weights and order follow from it
        return Measured.number(...)

In full, the claim's number is the mean over labs of three seeds, with the bootstrap over them as its interval; the
control's interval spans those of the three.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured

SEEDS = 3


def over_seeds(measure: Callable[[Lab], Measured]) -> Callable[[Lab], Measured]:
    """`measure` in a quick lab; in a full one its mean over three seeds, each measured with work of its own."""

    @functools.wraps(measure)
    def measured(lab: Lab) -> Measured:
        if not lab.full:
            return measure(lab)
        found = [measure(lab.of_seed(SEEDS * lab.seed + number)) for number in range(SEEDS)]
        mean = Measured.mean([one.value for one in found])
        controls = [one.control for one in found if one.control is not None]
        intervals = [one.control_interval for one in found if one.control_interval is not None]
        if not controls or not intervals:
            return mean
        span = (min(low for low, _ in intervals), max(high for _, high in intervals))
        return replace(mean, control=sum(controls) / len(controls), control_interval=span)

    return measured
