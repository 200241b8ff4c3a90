"""Regimes of the three systems, what is measured of an emulator's rollouts of them, and fields fitted, chosen, judged.

Files that fit, that choose site and strength, and that judge are drawn from seeds of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.organisms.networks import Emulator
from patchclamp.organisms.physics import measures, simulate
from patchclamp.organisms.physics.emulator import CONTEXT, rollout
from patchclamp.steering import Direction, fields, random
from patchclamp.studies.lab import Lab

LOW, MIDDLE, HIGH = 0.005, 0.012, 0.03
"""Diffusivities and viscosities, radians squared a frame."""
SLOW, FAST = 0.05, 0.2
"""Velocities along x, radians a frame."""
FRAMES, LONG = 4, 8
"""That are predicted; shear layers take longer to roll up."""
LATE = 16
"""Frames after which streams with vortices are cut."""
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
FIT, CHOOSE, FILES = 64, 16, 32
"""Runs of either regime that a field is fitted on, that site and strength are chosen on, and that judge."""
DRAWN, TRIED = 8, 3
"""Random fields that each is compared with, and others that the choice looks at."""

Law = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Feature:
    """Something physical that one regime has more of: how frames of either are made, and how much there is of it.

    `starts(n, seed, level)` gives frames [n, 2, field, y, x]; `law` what is measured of values [n, time, y, x].
    Runs go from `low` to `high`; the field is fitted on these, or where the lower of them still has some of the feature
    on `high` and `none`. `steps` frames are predicted. With `spatial` the field is kept in space.
    """

    name: str
    field: int
    starts: Callable[[int, int, float | None], Tensor]
    law: Law
    low: float
    high: float
    steps: int = FRAMES
    spatial: bool = False
    none: float | None = None

    @property
    def contrast(self) -> tuple[float, float]:
        """The regimes that its field is fitted on."""
        return self.high, self.low if self.none is None else self.none

    def measured(self, model: Model, frames: Tensor, do: Sequence[Intervention] = ()) -> Tensor:
        """By run, of the rollout from its last given frame on."""
        return self.law(rolled(model, frames, do, self.steps)[:, :, self.field])


def rolled(model: Model, frames: Tensor, do: Sequence[Intervention] = (), steps: int = FRAMES) -> Tensor:
    """The last frame given and those predicted, [run, 1 + steps, field, y, x]."""
    return torch.cat([frames[:, -1:], rollout(model, frames, steps, do=do)], 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tracers(n: int, seed: int, diffusivity: float | None) -> Tensor:
    return simulate.diffusing(n, frames=CONTEXT, generator=seeded(seed), diffusivity=diffusivity).frames


def carried(n: int, seed: int, speed: float | None) -> Tensor:
    velocity = None if speed is None else (0.0, speed)
    runs = simulate.diffusing(n, frames=CONTEXT, generator=seeded(seed), diffusivity=MIDDLE, velocity=velocity)
    return runs.frames


def phases(n: int, seed: int, diffusivity: float | None, late: int = 3) -> Tensor:
    runs = simulate.reacting(n, frames=late + CONTEXT, generator=seeded(seed), diffusivity=diffusivity)
    return runs.frames[:, late:]


def flows(n: int, seed: int, viscosity: float | None, late: int = 3) -> Tensor:
    runs = simulate.shearing(n, frames=late + CONTEXT, generator=seeded(seed), diffusivity=viscosity)
    return runs.frames[:, late:]


def streams(n: int, seed: int, wave: float | None, phase: float | None = None) -> Tensor:
    """Late frames of shear flows of low viscosity, which roll up the more the more they were disturbed."""
    runs = simulate.shearing(n, frames=LATE + CONTEXT, generator=seeded(seed), diffusivity=LOW, wave=wave, phase=phase)
    return runs.frames[:, LATE:]


def aligned(n: int, seed: int, wave: float | None) -> Tensor:
    """The same with their vortices all in the same places."""
    return streams(n, seed, wave, 0.0)


def swirl(values: Tensor) -> Tensor:
    """At the end of the rollout."""
    return measures.vortical(values)[:, -1]


def along(values: Tensor) -> Tensor:
    return measures.velocity(values)[:, 1]


DIFFUSION = Feature("diffusion of a tracer", simulate.TRACER, tracers, measures.diffusivity, LOW, HIGH)
REACTION = Feature("diffusion of a reaction", simulate.PHASE, phases, measures.reacting_diffusivity, LOW, HIGH)
SHEAR = Feature("viscosity of a shear flow", simulate.VORTICITY, flows, measures.viscosity, LOW, HIGH)
SPEED = Feature("speed of a tracer", simulate.TRACER, carried, along, SLOW, FAST)
ROLLING_UP = Feature("rolling up", simulate.VORTICITY, streams, swirl, 0.2, 0.5, LONG, none=0.0)
VORTICES = Feature("vortices", simulate.VORTICITY, aligned, swirl, 0.0, 0.5, LONG, spatial=True)


@dataclass(frozen=True)
class Chosen:
    """A field and a strength, chosen on other files than those that judge."""

    delta: Direction
    strength: float


def emulator(lab: Lab) -> Model:
    """The lab's model, if it is one that these frames can be given."""
    hf: Any = lab.model.hf
    known = isinstance(hf, Emulator) and (hf.config.frames, hf.config.fields) == (CONTEXT, simulate.FIELDS)
    lab.need(known, "an emulator of tracers, reactions and shear flows, as organism:emulator is")
    return lab.model


def sites(lab: Lab) -> list[str]:
    """All blocks but the last, after which nothing infers any more."""
    hf: Any = emulator(lab).hf
    return [f"module:blocks.{i}" for i in range(hf.config.layers - 1)]


def files(lab: Lab, feature: Feature, level: float, part: int) -> Tensor:
    """Runs that fit (0), choose (1) or judge (2, and 3 for those between the regimes)."""
    count = (FIT, CHOOSE, FILES, FILES)[part]
    return feature.starts(count, 100 * lab.seed + 10 * part + (level == feature.high), level)


def fitted(lab: Lab, feature: Feature, site: str) -> Direction:
    """The mean activation where there is most of the feature less that where there is least."""
    high, low = (files(lab, feature, level, 0) for level in feature.contrast)
    return pooled(feature, fields.difference(emulator(lab), high, low, site=site))


def pooled(feature: Feature, delta: Direction) -> Direction:
    """Without space, where the feature is nowhere in particular."""
    return delta if feature.spatial else delta.dropped()


def choice(lab: Lab, feature: Feature) -> Chosen:
    """The site and strength at which slow files come closest to fast ones and fast ones to slow ones, on average, while
    random fields of the same size do least; all in parts of the gap.
    """
    model = emulator(lab)
    low, high = (files(lab, feature, level, 1) for level in (feature.low, feature.high))
    ends = [float(feature.measured(model, frames).mean()) for frames in (low, high)]
    gap = ends[1] - ends[0]

    def steered(frames: Tensor, field: Direction, strength: float) -> float:
        return float(feature.measured(model, frames, [field.add(strength)]).mean())

    def miss(tried: Chosen) -> float:
        up, down = steered(low, tried.delta, tried.strength), steered(high, tried.delta, -tried.strength)
        others = [random(tried.delta, seed=1000 * lab.seed + 500 + seed) for seed in range(TRIED)]
        beside = [abs(steered(low, other, tried.strength) - ends[0]) / abs(gap) for other in others]
        return abs(up - ends[1]) / abs(gap) + abs(down - ends[0]) / abs(gap) + sum(beside) / TRIED

    deltas = [fitted(lab, feature, site) for site in sites(lab)]
    tried = [Chosen(delta, strength) for delta in deltas for strength in STRENGTHS]
    return min(lab.progress(tried, f"choosing for the {feature.name}"), key=miss)


def controls(lab: Lab, delta: Direction) -> list[Direction]:
    """Random fields of the same size, others than the choice has seen."""
    return [random(delta, seed=1000 * lab.seed + seed) for seed in range(DRAWN)]


def shuffled(lab: Lab, feature: Feature, delta: Direction) -> Direction:
    """What the same fit makes of the same runs under labels that say nothing, brought to the same size.

    Either side gets half of both regimes: labels dealt quite at random leave a little more of one on one side, and that
    little, brought to the same size, is the field itself.
    """
    halves = zip(*(files(lab, feature, level, 0).chunk(2) for level in feature.contrast), strict=True)
    first, second = (torch.cat(half) for half in halves)
    mixed = fields.difference(emulator(lab), first, second, site=delta.site)
    return pooled(feature, mixed).rescaled(delta.norm)


def gaps(lab: Lab, feature: Feature, sign: int) -> tuple[Tensor, Tensor]:
    """By file, and by control and file: what part of the gap between the regimes steering covers."""
    model, chosen = emulator(lab), lab.once(choice, feature)
    low, high = (files(lab, feature, level, 2) for level in (feature.low, feature.high))
    frames = low if sign > 0 else high
    ends = [feature.measured(model, some) for some in (low, high)]
    start, gap = ends[sign < 0], ends[1].mean() - ends[0].mean()

    def part(field: Direction) -> Tensor:
        return (feature.measured(model, frames, [field.add(sign * chosen.strength)]) - start) / (sign * gap)

    others = [*controls(lab, chosen.delta), shuffled(lab, feature, chosen.delta)]
    return part(chosen.delta), torch.stack([part(other) for other in others])
