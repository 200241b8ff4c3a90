"""What a study is: a header, and claims, each with the threshold that it must pass and the control it must beat."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from patchclamp.studies.lab import Lab
    from patchclamp.studies.measured import Measured

    Measure = Callable[[Lab], Measured]
    Draw = Callable[[Lab], Any]

Kind = Literal["finding", "identity"]
Sense = Literal["at least", "at most", "within"]


@dataclass(frozen=True)
class Claim:
    """One sentence that can turn out to be wrong, and how it is measured.

    `breaks` is for an identity with a control: by how much the control, where the identity is spoilt on purpose, must
    miss. `given` is the claim without which this one means nothing.
    """

    text: str
    kind: Kind
    sense: Sense
    threshold: float
    measure: "Measure"
    control: str = ""
    breaks: float | None = None
    given: "Claim | None" = None

    @property
    def name(self) -> str:
        return self.measure.__name__

    @property
    def sentence(self) -> str:
        """The claim with its threshold, its control and its premise."""
        parts = [f"{self.sense} {self.threshold:g}"]
        if self.breaks is not None:
            parts.append(f"broken by at least {self.breaks:g} by {self.control}")
        elif self.control:
            parts.append(f"control: {self.control}")
        if self.given is not None:
            parts.append(f"given that {self.given.text}")
        return f"{self.text} ({'; '.join(parts)})"


@dataclass(frozen=True)
class Figure:
    """A drawing of what was measured; `draw` returns a plotly figure."""

    text: str
    draw: "Draw"


@dataclass
class Study:
    """A paper's claims. `seed` names the file with the paper's text, `organism` the network that it is measured on.

    The decorators add claims in the order of the file and give the function back as it is.

    >>> study = Study(name="doubling", paper="On Doubling (1999)", seed="000.txt", organism="tales")
    >>> @study.identity("twice x is x plus x", tolerance=0)
    ... def twice(lab):
    ...     return Measured.gap(2 * x, x + x)
    >>> study.claims[0].sentence
    'twice x is x plus x (within 0)'
    """

    name: str
    paper: str
    seed: str
    organism: str
    claims: list[Claim] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def finding(
        self,
        claim: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        control: str,
        given: "Measure | None" = None,
    ) -> "Callable[[Measure], Measure]":
        """Something that this network has learnt: the function returns a `Measured` with its control.

        It holds when the value is `at_least` (or `at_most`) so much, the measured interval lies wholly beyond the
        control's, and the finding `given`, an earlier function of this study, holds.
        Raises `ValueError` for no threshold or two, for an unnamed control, and for a `given` that is no earlier claim.
        """
        if (at_least is None) == (at_most is None):
            raise ValueError(f"{claim!r}: a finding has one threshold, at_least= or at_most=")
        if not control.strip():
            raise ValueError(f"{claim!r}: say in control= what the finding must beat")
        premise = self._premise(claim, given)

        def add(measure: "Measure") -> "Measure":
            if at_least is not None:
                self._add(Claim(claim, "finding", "at least", float(at_least), measure, control, given=premise))
            elif at_most is not None:
                self._add(Claim(claim, "finding", "at most", float(at_most), measure, control, given=premise))
            return measure

        return add

    def identity(
        self, claim: str, *, tolerance: float, control: str = "", breaks: float | None = None
    ) -> "Callable[[Measure], Measure]":
        """Something true of any weights: the function returns `Measured.gap(...)`, which is at most `tolerance`.

        With a `control`, in which the identity is spoilt on purpose, the control's gap must be at least `breaks`.
        """
        if not (tolerance >= 0 and math.isfinite(tolerance)):
            raise ValueError(f"{claim!r}: tolerance={tolerance} is no size of an error")
        if bool(control) != (breaks is not None):
            raise ValueError(
                f"{claim!r}: control= says what spoils the identity, breaks= by how much; give both or none"
            )
        if breaks is not None and breaks <= tolerance:
            raise ValueError(f"{claim!r}: breaks={breaks:g} must be above tolerance={tolerance:g}")

        def add(measure: "Measure") -> "Measure":
            self._add(Claim(claim, "identity", "within", float(tolerance), measure, control, breaks))
            return measure

        return add

    def figure(self, text: str) -> "Callable[[Draw], Draw]":
        """A figure for the report; `text` says in a sentence what it shows."""

        def add(draw: "Draw") -> "Draw":
            self.figures.append(Figure(text, draw))
            return draw

        return add

    def _add(self, claim: Claim) -> None:
        if any(claim.name == other.name for other in self.claims):
            raise ValueError(f"{self.name} has two claims measured by functions called {claim.name}")
        self.claims.append(claim)

    def _premise(self, text: str, given: "Measure | None") -> Claim | None:
        if given is None:
            return None
        for claim in self.claims:
            if claim.measure is given:
                return claim
        raise ValueError(f"{text!r}: given= takes the function of a claim that stands before this one")
