"""What an investigation found, as data: `.summary()`, `.to_dict()`, `.save(folder)`, and a page of HTML."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from patchclamp.certificate import Certificate
from patchclamp.investigate.circuit import Evidence
from patchclamp.investigate.direction import Flip
from patchclamp.investigate.features import Features
from patchclamp.investigate.heads import CHANCE, Heads
from patchclamp.tasks import Baseline


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of effects: exact and approximate, by layer and position and by head."""

    positions: str
    labels: tuple[str, ...]
    streams: dict[str, xr.DataArray]
    stream_attribution: xr.DataArray
    heads: xr.DataArray | None
    head_attribution: xr.DataArray | None
    direct: xr.DataArray | None


@dataclass(frozen=True)
class Finding:
    """One sentence, what was measured for it, what its control gave, and whether it holds."""

    claim: str
    measured: float
    control: float
    control_name: str
    interval: tuple[float, float]
    holds: bool


@dataclass(frozen=True, eq=False)
class Investigation:
    """All that `investigate.run` found; `circuit` and `features` say why where there are none."""

    model: str
    task: str
    prompts: int
    seed: int
    certificate: Certificate
    behaviour: Baseline
    tables: Tables
    heads: Heads | None
    circuit: Evidence | str
    flip: Flip
    features: Features | str
    patterns: dict[str, Any] | None
    example: str
    seconds: float

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, each beside its control."""
        found = []
        if self.heads is not None:
            mean = self.heads.ablations[0]
            named = ", ".join(head.removeprefix("z.") for head in self.heads.named)
            found.append(
                Finding(
                    f"ablating {_count(self.heads.named, 'head')} ({named}) brings accuracy to chance or below "
                    "(chance is within its 95 % interval)",
                    mean.accuracy,
                    float(np.mean(mean.random_accuracy)),
                    f"{len(mean.random_accuracy)} random sets of as many heads",
                    mean.interval,
                    mean.holds,
                )
            )
        if isinstance(self.circuit, Evidence):
            circuit, alone = self.circuit.circuit, self.circuit.circuit.measured[0]
            found.append(
                Finding(
                    f"{circuit.size} of {circuit.graph.size} edges ({circuit.share:.1%}) alone are faithful under "
                    f"{alone.ablation} ablation",
                    alone.faithfulness,
                    float(np.mean(alone.random)),
                    f"{len(alone.random)} random circuits of as many edges",
                    (min(alone.random), max(alone.random)),
                    self.circuit.holds,
                )
            )
        mean_random, most = self.flip.random_at_one
        found.append(
            Finding(
                f"one direction at {self.flip.site}, position {self.flip.position}, flips the answer",
                self.flip.at_one,
                mean_random,
                "random directions of the same norm",
                (min(self.flip.random_flipped[self.flip.strengths.index(1.0)]), most),
                self.flip.holds,
            )
        )
        if isinstance(self.features, Features):
            few = self.features
            found.append(
                Finding(
                    f"{_count(few.named, 'latent')} of {few.width} at {few.site}, patched from clean runs, bring the "
                    "answer back",
                    few.measured,
                    few.controls[0],
                    "as many latents of an untrained dictionary",
                    (min(few.controls), max(few.controls)),
                    few.holds,
                )
            )
        return tuple(found)

    @property
    def correlations(self) -> dict[str, float]:
        """Pearson correlation of the linear approximation with the exact tables."""
        pairs = {"resid_pre": (self.tables.streams["resid_pre"], self.tables.stream_attribution)}
        if self.tables.heads is not None and self.tables.head_attribution is not None:
            pairs["heads"] = (self.tables.heads, self.tables.head_attribution)
        return {name: float(np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1]) for name, (a, b) in pairs.items()}

    def sentences(self) -> tuple[str, ...]:
        """The findings in words, with their numbers."""
        said = [
            f"{self.model} does {self.task}: accuracy {self.behaviour.accuracy:.0%}, "
            f"logit difference {self.behaviour.clean:.2f} clean and {self.behaviour.corrupted:.2f} corrupted."
        ]
        if self.heads is not None:
            mean = self.heads.ablations[0]
            names = ", ".join(f"`{head}`" for head in self.heads.named)
            verb = "It needs" if mean.holds else "No set of heads was found that it needs; the strongest were"
            said.append(
                f"{verb} {names}: with these ablated, accuracy falls from {self.heads.clean_accuracy:.0%} to "
                f"{mean.accuracy:.0%}; with random sets of as many heads it is {np.mean(mean.random_accuracy):.0%} "
                f"(95 % of sets: {mean.interval[0]:.0%} to {mean.interval[1]:.0%})."
            )
        said.append(_circuit(self.circuit))
        mean_random, _ = self.flip.random_at_one
        verb = "flips" if self.flip.holds else "flips only"
        said.append(
            f"The mean difference at `{self.flip.site}`, position {self.flip.position}, {verb} {self.flip.at_one:.0%} "
            f"of held-out prompts; random directions of its norm flip {mean_random:.0%}."
        )
        said.append(_features(self.features))
        return tuple(said)

    def summary(self) -> Any:
        """A short summary for the terminal (a rich renderable)."""
        from patchclamp.views.terminal import summary

        rows = [
            {
                "finding": f.claim,
                "measured": round(f.measured, 3),
                "control": round(f.control, 3),
                "holds": f.holds,
            }
            for f in self.findings
        ]
        return summary(f"{self.model} · {self.task}", rows, self.sentences())

    def to_dict(self) -> dict[str, Any]:
        """As JSON: every number that the report shows."""
        heads, flip = self.heads, self.flip
        return {
            "model": self.model,
            "task": self.task,
            "prompts": self.prompts,
            "seed": self.seed,
            "seconds": round(self.seconds, 2),
            "versions": {name: version(name) for name in ("patchclamp", "torch", "transformers")},
            "certificate": self.certificate.to_dict(),
            "behaviour": vars(self.behaviour) | {"holds": self.behaviour.holds},
            "heads": [] if heads is None else list(heads.named),
            "findings": [vars(finding) for finding in self.findings],
            "ablations": []
            if heads is None
            else [
                vars(a) | {"interval": a.interval, "reaches": a.reaches, "holds": a.holds, "chance": CHANCE}
                for a in heads.ablations
            ],
            "circuit": self.circuit.to_dict() if isinstance(self.circuit, Evidence) else {"none": self.circuit},
            "clean_accuracy": None if heads is None else heads.clean_accuracy,
            "accuracy_after_each_head": [] if heads is None else list(heads.accuracy_after),
            "direction": {
                "site": flip.site,
                "position": flip.position,
                "states": flip.states,
                "kind": flip.kind,
                "norm": flip.norm,
                "strengths": flip.strengths,
                "flipped": flip.flipped,
                "random_flipped": flip.random_flipped,
                "holds": flip.holds,
            },
            "features": self.features.to_dict() if isinstance(self.features, Features) else {"none": self.features},
            "correlation_of_attribution_with_exact": self.correlations,
            "attention": None if self.patterns is None else self.patterns["to_roles"],
            "tables": {
                **{f"exact {name}": _table(t) for name, t in self.tables.streams.items()},
                "attribution resid_pre": _table(self.tables.stream_attribution),
                **({"exact heads": _table(self.tables.heads)} if self.tables.heads is not None else {}),
                **(
                    {"attribution heads": _table(self.tables.head_attribution)}
                    if self.tables.head_attribution is not None
                    else {}
                ),
                **({"direct effect": _table(self.tables.direct)} if self.tables.direct is not None else {}),
            },
        }

    def save(self, folder: str | Path) -> Path:
        """Write `report.html` and `results.json` into `folder`; returns the report's path."""
        from patchclamp.investigate.page import page

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "results.json.partial"
        partial.write_text(json.dumps(self.to_dict(), indent=1, default=_plain))
        partial.replace(folder / "results.json")
        return page(self).save(folder / "report.html")

    def _repr_html_(self) -> str:
        from patchclamp.views.notebook import html_table

        return html_table([vars(finding) for finding in self.findings], caption=f"{self.model}: {self.task}")


def _circuit(found: "Evidence | str") -> str:
    """Faithfulness beside the random circuits', under each ablation, in a sentence."""
    if isinstance(found, str):
        return f"No circuit was looked for: {found}."
    measured = "; ".join(
        f"{one.faithfulness:.2f} under {one.ablation} ablation (random circuits "
        f"{round(np.mean(one.random), 2) + 0:.2f}, at most {max(one.random):.2f})"
        for one in found.circuit.measured
    )
    return (
        f"{found.circuit.size} of {found.circuit.graph.size} edges, run alone, keep this share of the logit "
        f"difference: {measured}."
    )


def _features(found: "Features | str") -> str:
    """What the named latents bring back, beside the controls, in a sentence."""
    if isinstance(found, str):
        return f"No features were looked for: {found}."
    untrained, random = found.controls
    return (
        f"{_count(found.named, 'latent')} of {found.width} at `{found.site}`, patched from clean into corrupted runs, "
        f"bring back {found.measured:.0%} of the answer (95 % interval {found.interval[0]:.0%} to "
        f"{found.interval[1]:.0%}; all latents {found.every:.0%}); as many of an untrained dictionary {untrained:.0%}, "
        f"random active ones at most {random:.0%}."
    )


def _count(items: tuple, noun: str) -> str:
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")


def _table(array: xr.DataArray) -> dict[str, Any]:
    coords = {str(name): array.coords[name].values.tolist() for name in array.dims if name in array.coords}
    return {"dims": list(array.dims), "coords": coords, "values": array.values.tolist(), **array.attrs}


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in JSON")
