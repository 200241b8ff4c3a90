"""The dose-response of steering: effect against cost, by site and strength, on prompts held out from the choice.

    found = pc.steering.tune(model, directions, joyful, neutral=texts, seed=0)
    found.table()            # strength, effect, its interval, the random directions', cross-entropy rise, KL
    found.direction, found.strength                      # chosen on one half of the prompts, within the budget
    found.plot()

The curve is the result. The strength that it names is the one with most effect on the choosing half among those that
make neutral text at most `budget` nats a token less likely; all figures are of the other half.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.intervals import bootstrap
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.steering.behaviour import Behaviour, Neutral
from patchclamp.steering.direction import Direction, random
from patchclamp.views.terminal import track

if TYPE_CHECKING:
    import plotly.graph_objects as go

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

Apply = Callable[[Direction, float], "list[Intervention]"]


def added(direction: Direction, strength: float) -> list[Intervention]:
    """Add the direction at every position, `strength` times."""
    return [direction.add(strength)]


@dataclass(frozen=True)
class Dose:
    """One point of the curve, on the held-out half: `effect` and its 95 % bootstrap interval, what random directions of
    the same norm do (one mean a direction), and the cost on neutral text in nats a token.
    """

    strength: float
    effect: float
    interval: tuple[float, float]
    random: tuple[float, ...]
    rise: float
    kl: float
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Response:
    """The curve of the direction that was chosen; `tried` has every site's effect on the choosing half."""

    behaviour: str
    direction: Direction
    strength: float
    budget: float
    doses: tuple[Dose, ...]
    tried: tuple[dict[str, Any], ...]

    @property
    def at_strength(self) -> Dose:
        """The point of the strength that was chosen."""
        return next(dose for dose in self.doses if dose.strength == self.strength)

    def table(self) -> list[dict[str, Any]]:
        """One row a strength."""
        return [
            {
                "strength": dose.strength,
                "effect": dose.effect,
                "interval": dose.interval,
                "random": sum(dose.random) / len(dose.random) if dose.random else None,
                "cross-entropy rise": dose.rise,
                "KL": dose.kl,
                **dose.others,
            }
            for dose in self.doses
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "behaviour": self.behaviour,
            "site": self.direction.site,
            "fit": self.direction.fit,
            "strength": self.strength,
            "budget": self.budget,
            "curve": self.table(),
            "tried": list(self.tried),
        }

    def save(self, folder: str | Path) -> None:
        """Write `response.json` and `direction.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "response.json").write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")
        self.direction.save(folder / "direction.safetensors")

    def plot(self) -> "go.Figure":
        """Effect by strength, beside the random directions' mean."""
        from patchclamp import views

        curves = {
            self.direction.fit or "direction": [dose.effect for dose in self.doses],
            "random directions": [sum(dose.random) / max(1, len(dose.random)) for dose in self.doses],
        }
        return views.lines([dose.strength for dose in self.doses], curves, title=self.behaviour, x_title="strength")

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page: the curve, its table, every site and strength that was tried."""
        from patchclamp.views import Plot, Report, Section, Table

        dose = self.at_strength
        beside = sum(dose.random) / max(1, len(dose.random))
        page = Report(
            f"Steering: {self.behaviour}",
            subtitle=f"{self.direction.fit} at {self.direction.site}",
            facts={"site": self.direction.site, "norm": self.direction.norm, "strength": self.strength}
            | {"budget, nats a token": self.budget},
            findings=[
                f"At strength {self.strength:g} the behaviour is {dose.effect:.3g} on prompts that chose nothing; it "
                f"is {self.doses[0].effect:.3g} at strength {self.doses[0].strength:g}, and {beside:.3g} under random "
                f"directions of the same norm. Neutral text costs {dose.rise:.3g} nats a token more."
            ],
            sections=[
                Section(
                    "Dose and response", [Plot(self.plot(), "effect by strength"), Table(self.table(), "the curve")]
                ),
                Section("What was tried", [Table(list(self.tried), "on the half of the prompts that chooses")]),
            ],
        )
        return page.save(path)

    def _repr_html_(self) -> str:
        from patchclamp import views

        return views.html_table(self.table(), f"{self.behaviour}: {self.direction}, strength {self.strength:g}")


def tune(
    model: Model,
    directions: "Direction | Sequence[Direction] | Mapping[Any, Direction]",
    behaviour: Behaviour,
    *,
    neutral: Any,
    strengths: Sequence[float] = STRENGTHS,
    apply: Apply = added,
    others: Sequence[Behaviour] = (),
    controls: int = 10,
    budget: float = 0.1,
    seed: int = 0,
) -> Response:
    """The direction and strength with most effect within the budget, and its curve on the held-out half.

    `apply(direction, strength)` says what is done (added everywhere by default). `neutral` is text on which cost is
    measured; `others` are behaviours that should stay. `controls` random directions of the same norm go beside it.
    Raises `ValueError` where no strength stays within `budget` nats a token.
    """
    several = [directions] if isinstance(directions, Direction) else list(_values(directions))
    if not several:
        raise ValueError("there is no direction to tune")
    choose, judge = behaviour.halves(seed)
    text = Neutral(model, neutral)
    tried = []
    for direction in track(several, "choosing site and strength"):
        for strength in strengths:
            do = apply(direction, strength)
            cost = text.measure(do)["rise"]
            row = {"site": direction.site, "fit": direction.fit, "strength": strength, "rise": cost}
            tried.append((direction, row | {"effect": float(choose.measure(model, do).mean())}))
    within = [(direction, row) for direction, row in tried if row["rise"] <= budget]
    if not within:
        least = min(row["rise"] for _, row in tried)
        raise ValueError(
            f"every strength costs more than budget={budget} nats a token on neutral text; least: {least:.3g}"
        )
    # Of equal effects the weaker dose: `max` keeps the first, and cheap ones are put first.
    best, row = max(sorted(within, key=lambda item: item[1]["rise"]), key=lambda item: item[1]["effect"])
    randoms = [random(best, seed=1000 * seed + index) for index in range(controls)]
    doses = []
    for strength in track(strengths, "dose and response"):
        do = apply(best, strength)
        values, cost = judge.measure(model, do), text.measure(do)
        beside = tuple(float(judge.measure(model, apply(other, strength)).mean()) for other in randoms)
        rest = {other.name: float(other.measure(model, do).mean()) for other in others}
        interval = bootstrap(values, seed)
        doses.append(Dose(strength, float(values.mean()), interval, beside, cost["rise"], cost["kl"], rest))
    return Response(behaviour.name, best, row["strength"], budget, tuple(doses), tuple(row for _, row in tried))


def _values(directions: Any) -> Any:
    return directions.values() if isinstance(directions, Mapping) else directions
