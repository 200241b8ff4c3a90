"""Steering networks over grids: what one regime of a simulation has more of than another, at each place or on average.

    delta = pc.steering.fields.difference(emulator, vortices, laminar, site="module:blocks.2")
    emulator.run({"inputs": frames}, do=[delta.add(0.5)])           # where the vortices were
    emulator.run({"inputs": frames}, do=[delta.dropped().add(0.5)]) # on average over space: at any place of any grid
    delta.resized((64, 64)); delta.cropped((16, 16))                # as it is, on another grid
    pc.steering.random(delta, seed=0)                               # of the same norm: the control

    found = pc.steering.fields.response(emulator, delta, frames, measure=lambda x: x[:, -1].amax((1, 2, 3)), steps=4)
    found.table()                               # strength, effect, its interval, what random directions do

As in Physics Steering in a Physics Foundation Model: the mean activation over files and time in which a feature is
there, less that over those in which it is not: a `Direction` with space, since features come second there, [batch,
feature, ...space]. A network that keeps them last, [batch, place, feature], is steered as one over tokens is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.intervals import bootstrap
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.steering.direction import Direction, DirectionError, random
from patchclamp.views.terminal import track

if TYPE_CHECKING:
    import plotly.graph_objects as go

Measure = Callable[[Tensor], Tensor]
"""One number an input, of frames [input, 1 + steps, ...], the last given first, or of outputs that are no frames."""

FEWEST = 8
"""Inputs that a mean is taken over; below that it is mostly noise."""


def difference(
    model: Model,
    positive: Float[Tensor, "input ..."],
    negative: Float[Tensor, "input ..."],
    *,
    site: str | Site,
    batch: int = 64,
) -> Direction:
    """Mean activation over `positive` inputs less that over `negative` ones, at every feature and place.

    Inputs are tensors that the model takes one batch at a time. Raises `DirectionError` for fewer than 8 on either side
    and for a site that returns no [batch, feature, ...space].
    """
    values = mean(model, positive, site=site, batch=batch) - mean(model, negative, site=site, batch=batch)
    about = {"model": model.name, "positive": len(positive), "negative": len(negative)}
    return Direction(str(site), values, "difference", about)


def mean(
    model: Model, inputs: Float[Tensor, "input ..."], *, site: str | Site, batch: int = 64
) -> Float[Tensor, "feature *space"]:
    """The mean activation over inputs."""
    if len(inputs) < FEWEST:
        raise DirectionError(f"{len(inputs)} inputs, and a mean of fewer than {FEWEST} is mostly noise")
    total: Tensor | None = None
    for start in range(0, len(inputs), batch):
        found = model.run(inputs[start : start + batch], record=site, stop=True)[site]
        if found.ndim < 3:
            raise DirectionError(f"{site} returns {list(found.shape)}, not [batch, feature, ...space]")
        part = found.double().sum(0).cpu()
        total = part if total is None else total + part
    assert total is not None
    return (total / len(inputs)).float()


# ── what steering does ────────────────────────────────────────────────────────────────────────────────────────────────


def rolled(
    model: Model,
    inputs: Float[Tensor, "input ..."],
    steps: int = 1,
    *,
    do: Sequence[Intervention] = (),
    batch: int = 64,
) -> Float[Tensor, "input ..."]:
    """The last frame given and the `steps` that follow, [input, 1 + steps, ...], the model fed what it predicts.

    An input is one frame, or several in a row, time first. Of a network whose output is no such frame (a classifier)
    the output, which cannot be fed back: `DirectionError` for more than one step.
    """
    return torch.cat([_rolled(model, part, steps, do) for part in inputs.split(batch)])


def _rolled(model: Model, frames: Tensor, steps: int, do: Sequence[Intervention]) -> Tensor:
    if steps < 1:
        raise DirectionError(f"steps={steps}: one frame or more is predicted")
    found: list[Tensor] = []
    for _ in range(steps):
        run = model.run(frames, do=do)
        after = run.output if run.logits is None else run.logits
        if not isinstance(after, Tensor):
            raise DirectionError(f"{model.name} returns a {type(after).__name__}, and steering is measured on tensors")
        row = after.shape == frames[:, -1].shape
        if not row and after.shape != frames.shape:
            if steps == 1:
                return after.cpu()
            raise DirectionError(
                f"steps={steps}: {model.name} makes {list(after.shape)} of {list(frames.shape)}, which is no next frame"
            )
        found += [frames[:, -1] if row else frames] if not found else []
        found.append(after)
        frames = torch.cat([frames[:, 1:], after[:, None]], 1) if row else after
    return torch.stack([frame.cpu() for frame in found], 1)


@dataclass(frozen=True, eq=False)
class Response:
    """What is measured under a direction at each strength, by input, and the mean under random ones of its norm.

    `unsteered` is that without, by input; `regimes` the means, unsteered, of the inputs that the direction leads from
    and to, where these were given.
    """

    direction: Direction
    strengths: tuple[float, ...]
    effects: Float[Tensor, "strength input"]
    random: Float[Tensor, "strength control"]
    unsteered: Float[Tensor, "input"]
    regimes: tuple[float, float] | None = None

    def table(self) -> list[dict[str, Any]]:
        """One row a strength: the mean over inputs, its 95 % bootstrap interval, the mean over random directions, and
        how much of the gap between the regimes steering covers.
        """
        rows = []
        for strength, effect, beside in zip(self.strengths, self.effects, self.random, strict=True):
            row: dict[str, Any] = {"strength": strength, "effect": float(effect.mean()), "interval": bootstrap(effect)}
            rows.append(row | {"random": float(beside.mean())})
            if self.regimes is not None:
                low, high = self.regimes
                moved = row["effect"] - float(self.unsteered.mean())
                rows[-1]["part of the gap"] = moved / (high - low) if high != low else None
        return rows

    def findings(self) -> list[str]:
        """What adding the direction as it is does, in a sentence; none where strength 1 is not among those measured."""
        said = []
        for row, beside in zip(self.table(), self.random.tolist(), strict=True):
            if row["strength"] == 1:
                gap = row.get("part of the gap")
                said.append(
                    f"Added as it is at {self.direction.site}: {row['effect']:.3g}, unsteered "
                    f"{float(self.unsteered.mean()):.3g}"
                    + ("" if gap is None else f", {gap:.0%} of the gap between the regimes")
                    + f"; random directions of its norm {min(beside):.3g} to {max(beside):.3g}."
                )
        return said

    def plot(self, title: str = "") -> "go.Figure":
        """Effect by strength with its interval, over the range of the random directions."""
        from patchclamp import views

        name, rows = self.direction.fit or "direction", self.table()
        return views.lines(
            self.strengths,
            {name: [row["effect"] for row in rows]},
            intervals={name: [row["interval"] for row in rows]},
            control=[row["random"] for row in rows],
            control_interval=torch.stack([self.random.amin(1), self.random.amax(1)], 1).numpy(),
            title=title,
            x_title="strength",
            control_label="random directions",
        )

    def _repr_html_(self) -> str:
        from patchclamp import views

        return views.html_table(self.table(), str(self.direction))


def response(
    model: Model,
    direction: Direction,
    inputs: Float[Tensor, "input ..."],
    measure: Measure,
    *,
    strengths: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0),
    steps: int = 1,
    regimes: tuple[Float[Tensor, "low ..."], Float[Tensor, "high ..."]] | None = None,
    controls: int = 8,
    seed: int = 0,
) -> Response:
    """The dose-response of a direction over a grid: `measure` of what the model makes of `inputs`, by strength.

    `steps` frames are predicted (`rolled`). `regimes` are inputs that the direction leads from and to, between which
    the effect is a part of the gap. `controls` random directions of the same norm go beside it. Raises `DirectionError`
    where `measure` does not give a finite number an input.
    """
    if controls < 1:
        raise ValueError(f"controls={controls}: an effect says nothing without a random direction beside it")

    def measured(some: Tensor, do: Sequence[Intervention] = ()) -> Tensor:
        values = torch.as_tensor(measure(rolled(model, some, steps, do=do))).double()
        if values.shape != (len(some),) or not bool(values.isfinite().all()):
            raise DirectionError(
                f"the measure gives {list(values.shape)} for {len(some)} inputs, not a finite number each"
            )
        return values

    others = [random(direction, seed=1000 * seed + number) for number in range(controls)]
    effects, beside = [], []
    for strength in track(tuple(strengths), "dose and response"):
        effects.append(measured(inputs, [direction.add(strength)]))
        beside.append(torch.stack([measured(inputs, [other.add(strength)]).mean() for other in others]))
    ends = None if regimes is None else (float(measured(regimes[0]).mean()), float(measured(regimes[1]).mean()))
    return Response(direction, tuple(strengths), torch.stack(effects), torch.stack(beside), measured(inputs), ends)


def rows(responses: Sequence[Response]) -> list[dict[str, Any]]:
    """Plain data, for JSON: a site's direction, its regimes and its curve in a row."""
    return [
        {
            "site": one.direction.site,
            "fit": one.direction.fit,
            "norm": one.direction.norm,
            "space": list(one.direction.space),
            "unsteered": float(one.unsteered.mean()),
            "regimes": one.regimes,
            "curve": one.table(),
        }
        for one in responses
    ]


def report(responses: Sequence[Response], path: str | Path, title: str) -> Path:
    """Write one self-contained HTML page, a section for each site."""
    from patchclamp.views import Plot, Report, Section, Table

    facts: dict[str, Any] = {"inputs": len(responses[0].unsteered), "unsteered": float(responses[0].unsteered.mean())}
    if responses[0].regimes is not None:
        facts |= dict(zip(("where it leads from", "where it leads to"), responses[0].regimes, strict=True))
    sections = [
        Section(
            one.direction.site,
            [
                Plot(one.plot(), "effect by strength", "Mean over inputs in its 95 % interval; all random directions."),
                Table(one.table(), f"{one.direction.fit}, norm {one.direction.norm:.3g}"),
            ],
        )
        for one in responses
    ]
    findings = [said for one in responses for said in one.findings()]
    return Report(f"Steering: {title}", facts=facts, findings=findings, sections=sections).save(path)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

SUFFIXES = (".npy", ".pt", ".safetensors")


def read(path: str | Path) -> Float[Tensor, "input ..."]:
    """The array of a .npy, .pt or .safetensors file, as float32; `DirectionError` where it holds more, or none."""
    path = Path(path)
    if path.suffix == ".npy":
        import numpy as np

        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    if path.suffix == ".pt":
        found = torch.load(path, map_location="cpu", weights_only=True)
    elif path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found = load_file(path)
    else:
        raise DirectionError(f"{path} is none of {', '.join(SUFFIXES)}")
    arrays = found if isinstance(found, dict) else {"": found}
    if len(arrays) != 1 or not isinstance(next(iter(arrays.values())), Tensor):
        raise DirectionError(f"{path} holds {', '.join(map(str, arrays)) or 'nothing'}: one array is expected")
    return next(iter(arrays.values())).float()
