"""Whether claims hold: computed from what was measured, kept as plain data, written as JSON or as a page."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from patchclamp.studies.measured import Interval, Measured
from patchclamp.studies.study import Claim

OWN = "of the study's own networks and data, not of this model"
"""What a claim says of itself that was measured without the model that was given."""


@dataclass(frozen=True)
class Outcome:
    """One claim and how it came out.

    `holds` is None, and nothing was measured, where the claim cannot be asked of this model; `note` says why.
    """

    claim: str
    kind: str
    measured: float | None
    interval: Interval | None
    threshold: float
    control: float | None
    holds: bool | None
    note: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        row = {key: value for key, value in asdict(self).items() if key != "note"}
        return row | {"interval": None if self.interval is None else list(self.interval)}


def judge(claim: Claim, measured: Measured, *, premise: bool = True) -> Outcome:
    """Whether a claim holds, given what was measured.

    A finding: the value passes the threshold, and the whole 95 % interval lies beyond the control's whole interval, on
    the side of the threshold; and its premise holds. An identity: the gap is at most the tolerance; and its control,
    if it has one, misses by at least `breaks`. What is not finite passes nothing.
    Raises `TypeError` for a finding (or an identity with a control) that was measured without its control.
    """
    if (claim.kind == "finding" or claim.breaks is not None) and measured.control is None:
        raise TypeError(f"{claim.name} must return its control beside what it measured: Measured.mean(..., control=)")
    holds = _passes(claim, measured) and _beats(claim, measured)
    note = "" if premise or claim.given is None else f"its premise does not hold: {claim.given.text}"
    value, interval, control = measured.value, measured.interval, measured.control
    return Outcome(
        claim.sentence,
        claim.kind,
        value if math.isfinite(value) else None,
        interval if all(map(math.isfinite, interval)) else None,
        claim.threshold,
        control if control is not None and math.isfinite(control) else None,
        holds and premise,
        note,
    )


def _passes(claim: Claim, measured: Measured) -> bool:
    if not math.isfinite(measured.value):
        return False
    return measured.value >= claim.threshold if claim.sense == "at least" else measured.value <= claim.threshold


def _beats(claim: Claim, measured: Measured) -> bool:
    if claim.kind == "identity":
        return claim.breaks is None or (measured.control is not None and measured.control >= claim.breaks)
    (low, high), ends = measured.interval, measured.control_interval
    assert ends is not None
    return low > ends[1] if claim.sense == "at least" else high < ends[0]


@dataclass(frozen=True)
class Verdict:
    """A study's outcome. `organism` says what it ran on; figures are there when the study ran with `out=`."""

    study: str
    paper: str
    seed: str
    organism: str
    seconds: float
    claims: tuple[Outcome, ...]
    figures: Sequence[tuple[str, Any]] = field(default=(), compare=False, repr=False)

    @property
    def holds(self) -> bool:
        """Whether every claim that could be asked of this model holds; False where none could."""
        return bool(self.asked) and all(claim.holds for claim in self.asked)

    @property
    def asked(self) -> tuple[Outcome, ...]:
        """The claims that could be asked of this model."""
        return tuple(claim for claim in self.claims if claim.holds is not None)

    @property
    def said(self) -> str:
        """The outcome in words, with how many claims could not be asked."""
        if not self.asked:
            return f"none of its {len(self.claims)} claims can be asked of this model"
        left = len(self.claims) - len(self.asked)
        planted = sum(OWN in claim.claim for claim in self.asked)
        if planted == len(self.asked):  # no word about the model that was given
            holds = "hold" if self.holds else "do not all hold"
            return (
                f"nothing was measured on this model: all claims that were, which {holds}, are {OWN.partition(',')[0]}"
            )
        rest = [f"{left} of {len(self.claims)} claims cannot be asked of this model"] if left else []
        rest += [f"{planted} of {len(self.claims)} claims are {OWN}"] if planted else []
        return ("holds" if self.holds else "does not hold") + (f" ({'; '.join(rest)})" if rest else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the same that `patchclamp study NAME --json FILE` writes."""
        head = {key: getattr(self, key) for key in ("study", "paper", "seed", "organism", "seconds")}
        return head | {"claims": [claim.to_dict() for claim in self.claims], "holds": self.holds}

    def save(self, path: str | Path) -> Path:
        """Write the JSON to `path`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Verdict":
        """The verdict that `save` wrote."""
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        claims = tuple(
            Outcome(**row | {"interval": None if row["interval"] is None else tuple(row["interval"])})
            for row in data["claims"]
        )
        return cls(data["study"], data["paper"], data["seed"], data["organism"], data["seconds"], claims)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page."""
        from patchclamp.views import Paragraph, Plot, Report, Section, Table
        from patchclamp.views import Verdict as Badge

        held = sum(bool(claim.holds) for claim in self.asked)
        badges: list[Any] = [Badge(claim.claim, bool(claim.holds), _evidence(claim)) for claim in self.asked]
        badges += [Paragraph(f"Not asked of this model: {c.claim}. {c.note}") for c in self.claims if c.holds is None]
        sections = [Section("Claims", badges)]
        if self.figures:
            shown = [Paragraph(text) if figure is None else Plot(figure, alt=text) for text, figure in self.figures]
            sections.append(Section("Figures", shown))
        sections.append(Section("Numbers", [Table(self._rows(), "What was measured, beside its control.")]))
        page = Report(
            f"{self.study}: {self.said}",
            subtitle=self.paper,
            facts={"model": self.organism, "claims that hold": f"{held} of {len(self.asked)}", "seconds": self.seconds},
            sections=sections,
        )
        return page.save(path)

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "claim": claim.claim,
                "kind": claim.kind,
                "measured": claim.measured,
                "interval": claim.interval,
                "threshold": claim.threshold,
                "control": claim.control,
                "holds": claim.holds,
            }
            for claim in self.claims
        ]

    def _repr_html_(self) -> str:
        from patchclamp.views import html_table

        return html_table(self._rows(), f"{self.study} on {self.organism}: {self.said}", limit=len(self.claims))


def _evidence(claim: Outcome) -> dict[str, object]:
    evidence: dict[str, object] = {"measured": claim.measured}
    if claim.interval is not None and claim.interval[0] != claim.interval[1]:
        evidence["95 % interval"] = claim.interval
    evidence["threshold"] = claim.threshold
    if claim.control is not None:
        evidence["control"] = claim.control
    return evidence | ({"why": claim.note} if claim.note else {})
