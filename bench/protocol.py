"""How everything here is timed: the sides take turns in one process.

The machine's speed drifts by more than the differences of interest, so two sides are never timed one after the
other in blocks: each round times every side once, the next round in the opposite order, and a ratio is formed within
a round before the median over rounds is taken.
"""

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: its median over the rounds, with a 95 % bootstrap interval of that median."""

    median: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.median:.3g} [{low:.3g}, {high:.3g}]"


@dataclass(frozen=True)
class Timings:
    """Seconds by side, one entry for each round; the same index is the same round on every side.

    `cpu_seconds` is the processor time of this process. What other processes take of the machine is not in it, but
    the spinning of threads which wait for each other is: on a busy machine it is the fairer figure on one thread only.
    """

    seconds: Mapping[str, Sequence[float]]
    cpu_seconds: Mapping[str, Sequence[float]]

    def median(self, *sides: str) -> float:
        """Median over rounds of the time that these sides take together, in seconds."""
        return statistics.median(self._together(self.seconds, sides))

    def ratio(self, slow: Sequence[str], fast: Sequence[str], *, cpu: bool = False, seed: int = 0) -> Ratio:
        """How many times longer the `slow` sides take together than the `fast` ones, compared round by round.

        `cpu` compares processor time instead of elapsed time.
        """
        seconds = self.cpu_seconds if cpu else self.seconds
        ratios = self._together(seconds, slow) / self._together(seconds, fast)
        drawn = np.random.default_rng(seed).choice(ratios, size=(2000, len(ratios)))
        low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
        return Ratio(float(np.median(ratios)), (float(low), float(high)))

    @staticmethod
    def _together(seconds: Mapping[str, Sequence[float]], sides: Sequence[str]) -> np.ndarray:
        return np.sum([seconds[side] for side in sides], axis=0)


@dataclass(frozen=True)
class Claim:
    """A sentence with a number in it, and whether the measured number bears it out."""

    claim: str
    measured: float
    interval: tuple[float, float] | None
    threshold: float
    holds: bool

    def __str__(self) -> str:
        interval = "" if self.interval is None else f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        return f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.claim}: measured {self.measured:.3g}{interval}"


def take_turns(sides: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> Timings:
    """Time every side once in each round, after `warmup` rounds that are not counted.

    A side returns its own duration in seconds when it measures itself (a child process, for example), by returning a
    `float`; anything else that it returns is dropped and the call is timed from here.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; a measurement needs at least 1")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    cpu_seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(-warmup, rounds):
        for side in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            gc.collect()  # each side pays for its own garbage, not for its predecessor's
            start, start_cpu = time.perf_counter(), time.process_time()
            result = sides[side]()
            elapsed, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            if turn >= 0:
                seconds[side].append(result if isinstance(result, float) else elapsed)
                cpu_seconds[side].append(cpu)
    return Timings(seconds, cpu_seconds)


def machine(threads: int) -> dict[str, object]:
    """What the figures depend on: processor, threads, load from others, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "transformer-lens", "patchclamp")},
    }


def report(
    bench: str,
    *,
    threads: int,
    setting: Mapping[str, object],
    timings: Timings,
    claims: Sequence[Claim],
    measured: Mapping[str, object],
    path: Path | None,
) -> int:
    """Print medians and claims, write them as JSON to `path`, and return the exit status: 1 if a claim fails."""
    width = max(map(len, timings.seconds))
    print(f"  {'':<{width}}       median      fastest")
    for side, values in timings.seconds.items():
        print(f"  {side:<{width}}  {_duration(timings.median(side))}  {_duration(min(values))}")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load + 0.5 > cores and load > threads + 0.5:
        print(f"  the load is {load:.1f} on {cores} cores: others are at work here, so these figures are worth little")
    for claim in claims:
        print(claim)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "bench": bench,
            "machine": machine(threads),
            "setting": dict(setting),
            "median_seconds": {side: timings.median(side) for side in timings.seconds},
            "seconds": {side: list(values) for side, values in timings.seconds.items()},
            "cpu_seconds": {side: list(values) for side, values in timings.cpu_seconds.items()},
            **measured,
            "claims": [asdict(claim) for claim in claims],
        }
        path.write_text(json.dumps(record, indent=1, default=lambda value: value.item()) + "\n")
    return int(not all(claim.holds for claim in claims))


def _duration(seconds: float) -> str:
    return f"{seconds:8.3f} s" if seconds >= 1 else f"{1e3 * seconds:8.3f} ms"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
