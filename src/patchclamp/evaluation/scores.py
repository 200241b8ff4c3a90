"""What a benchmark of dictionaries found: each score with its interval, and the same of the baselines beside it.

scores = evaluate(dictionary, data)
scores["tpp@2"].value, scores["tpp@2"].interval, scores["tpp@2"].baselines["random"].value
scores.rows(); scores.save("scores.json"); Scores.load("scores.json"); scores.plot()
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; of one value the interval is the value itself. None where it is not defined."""

    value: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, runs: Sequence[np.ndarray], seed: int = 0) -> "Estimate":
        """From each run's values (one for each concept or prompt): runs and values are resampled, both.

        Values that are NaN were not defined, and are left out; all of them: there is no estimate.
        """
        rows = [np.asarray(run, float)[np.isfinite(run)] for run in runs]
        rows = [row for row in rows if len(row)]
        if not rows:
            return cls(None, None)
        value = float(np.mean([row.mean() for row in rows]))
        if len(rows) == 1 and len(rows[0]) == 1:
            return cls(value, (value, value))
        generator = np.random.default_rng(seed)
        means = np.stack([row[generator.integers(len(row), size=(RESAMPLES, len(row)))].mean(1) for row in rows], 1)
        picks = generator.integers(len(rows), size=(RESAMPLES, len(rows)))
        low, high = np.quantile(np.take_along_axis(means, picks, 1).mean(1), [0.025, 0.975])
        return cls(value, (float(low), float(high)))


@dataclass(frozen=True)
class Score:
    """One measure of a dictionary. `better` is "higher", "lower", or "" where neither is."""

    measure: str
    value: float | None
    interval: tuple[float, float] | None
    better: str = ""
    baselines: Mapping[str, Estimate] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As a row of a table: the baselines' values under their names."""
        beside = {name: estimate.value for name, estimate in self.baselines.items()}
        return {"measure": self.measure, "value": self.value, "interval": self.interval, "better": self.better} | beside


@dataclass(frozen=True)
class Scores:
    """All scores of one dictionary (or of several that were trained alike); `facts` say on what."""

    scores: tuple[Score, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, measure: str) -> Score:
        found = {score.measure: score for score in self.scores}
        if measure not in found:
            near = difflib.get_close_matches(measure, found, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"no score is called {measure!r}{hint} There are {', '.join(found)}.")
        return found[measure]

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self) -> list[dict[str, Any]]:
        """One row a score, for `pandas.DataFrame(scores.rows())`."""
        return [score.row() for score in self.scores]

    def save(self, path: str | Path) -> Path:
        """Write JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """The scores that `save` wrote."""
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = []
        for row in data["scores"]:
            beside = {name: Estimate(one["value"], _ends(one["interval"])) for name, one in row["baselines"].items()}
            scores.append(Score(row["measure"], row["value"], _ends(row["interval"]), row["better"], beside))
        return cls(tuple(scores), data["facts"])

    def plot(self, baseline: str | None = None) -> Any:
        """Bars of the scores that lie between -1 and 1, each with one baseline below it (the first, unless named)."""
        from patchclamp.views import bars

        shown = [score for score in self.scores if score.value is not None and -1 <= score.value <= 1]
        names = list(dict.fromkeys(name for score in shown for name in score.baselines))
        name = baseline or (names[0] if names else None)
        if name is not None:
            shown = [score for score in shown if _known(score.baselines.get(name))]
        if not shown:
            raise ValueError(f"there is no score with a baseline {name!r}: baselines are {', '.join(names) or 'none'}")
        beside = None if name is None else [score.baselines[name].value or 0.0 for score in shown]
        ends = None if name is None else [score.baselines[name].interval or () for score in shown]
        return bars(
            [score.measure for score in shown],
            [score.value or 0.0 for score in shown],
            [score.interval or () for score in shown],
            beside,
            ends,
            title="scores",
            label="dictionary",
            control_label=name or "",
        )

    def _repr_html_(self) -> str:
        from patchclamp.views import html_table

        said = ", ".join(f"{name}: {value}" for name, value in self.facts.items())
        return html_table(self.rows(), said, limit=max(1, len(self.scores)))


def _ends(interval: list[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def _known(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.value is not None
