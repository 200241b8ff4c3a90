"""Running a study: open the lab, measure each claim, judge it, draw."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.studies.catalogue import load
from patchclamp.studies.lab import MODEL, Lab, NotApplicable, open_lab
from patchclamp.studies.study import Claim, Figure, Study
from patchclamp.studies.verdict import OWN, Outcome, Verdict, judge

if TYPE_CHECKING:
    from patchclamp.model import Model


def run(
    study: str | Study,
    *,
    full: bool = False,
    model: "str | Path | Model | None" = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Verdict:
    """Measure every claim of a study and say which hold.

    `study` is a name or a `Study`. `model` is None for the organism that the study names, "random" for its architecture
    with fresh weights (where every finding must fail), or a Model, folder or hub id of your own. With `out`, a folder,
    figures are drawn too, and `verdict.json` and `report.html` are written there.
    Raises `NotApplicable`, with what is missing, where no claim can be asked of your model; a single claim that cannot
    is left open (`holds` is None), and what is given it too; so is one whose method refuses your model with an error.
    A claim that never asked for your model, being of what the study plants itself, says so.
    """
    study = load(study) if isinstance(study, str) else study
    if not study.claims:
        raise ValueError(f"{study.name} claims nothing")
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    lab, name = open_lab(study.organism, model=model, seed=seed, full=full, out=folder)
    own = model is None or model == "random"
    outcomes: dict[str, Outcome] = {}
    for claim in lab.progress(study.claims, study.name):
        outcomes[claim.name] = _outcome(claim, lab, outcomes, own)
    if all(outcome.holds is None for outcome in outcomes.values()):
        reasons = "; it ".join(dict.fromkeys(outcome.note for outcome in outcomes.values()))
        raise NotApplicable(f"{study.name} cannot be run on {name}: it {reasons}")
    figures = [] if folder is None else [_drawn(figure, lab, own) for figure in study.figures]
    seconds = round(time.perf_counter() - start, 2)
    verdict = Verdict(study.name, study.paper, study.seed, name, seconds, tuple(outcomes.values()), tuple(figures))
    if folder is not None:
        verdict.save(folder / "verdict.json")
        verdict.report(folder / "report.html")
    return verdict


def _drawn(figure: Figure, lab: Lab, own: bool) -> tuple[str, Any]:
    """The figure under its text; None, and why, where it cannot be drawn of your model."""
    try:
        return figure.text, figure.draw(lab.at(figure.draw.__name__))
    except (ValueError, LookupError) as reason:
        if own and not lab.untrained:
            raise
        return f"{figure.text}: not drawn, it {reason}", None


def _outcome(claim: Claim, lab: Lab, earlier: dict[str, Outcome], own: bool) -> Outcome:
    premise = None if claim.given is None else earlier[claim.given.name]
    if premise is not None and premise.holds is None:  # what it is given cannot be asked, so nor can it
        return Outcome(claim.sentence, claim.kind, None, None, claim.threshold, None, None, premise.note)
    bench = lab.at(claim.name)
    try:
        measured = claim.measure(bench)
    except NotApplicable as reason:
        if own and not (lab.untrained and claim.kind == "finding"):
            raise  # the study's own organism lacks what the study needs: a mistake in the study
        holds = False if own else None  # untrained weights that lack it have not learnt it
        return Outcome(claim.sentence, claim.kind, None, None, claim.threshold, None, holds, str(reason))
    except (ValueError, LookupError) as reason:  # what a method says of a model that it is not made for
        if own:
            raise
        note = f"gives no measurement ({reason})"
        return Outcome(claim.sentence, claim.kind, None, None, claim.threshold, None, None, note)
    outcome = judge(claim, measured, premise=premise is None or premise.holds is True)
    if own:
        return outcome
    told = sorted(bench.used - {MODEL}) if MODEL in bench.used else [OWN]
    return replace(outcome, claim="; ".join([outcome.claim.removesuffix(")"), *told]) + ")")
