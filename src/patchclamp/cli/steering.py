"""The command that finds a direction between two sets of inputs and says what adding it does, dose by dose."""

import importlib
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from patchclamp.cli.arguments import JsonFile, ModelName, Seed, given, lines_of, show, write

File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
ARRAYS = (".npy", ".pt", ".safetensors")
BUDGET = 0.1  # nats a token
OF_TEXTS = ("neutral", "words", "starts", "last", "budget")
OF_ARRAYS = ("measure", "field", "steps", "drop_space")


@dataclass(frozen=True)
class Steer:
    """Find the direction from some inputs to others, and measure what adding it does, by site and strength.

    Texts: each file has a prompt a line. The effect is counted in what the model writes after --prompts: the share of
    --words, or how often it begins with --starts. Site and strength are chosen on half of them, figures are of the
    other half.

    Networks over grids: each file is an array of inputs (.npy, .pt, .safetensors). The effect is what --measure finds
    in the frames that the model predicts from --prompts; every site has its curve.

    For example: patchclamp steer --positive sea.txt --negative forest.txt --prompts prompts.txt --neutral text.txt
    --words ship wave harbour --out steering

    patchclamp steer --model organism:emulator --positive fast.npy --negative slow.npy --prompts frames.npy --sites
    module:blocks.1 --drop-space --measure patchclamp.organisms.physics.measures:diffusivity --field 0 --out steering
    """

    positive: File
    """prompts with what is wanted"""
    negative: File
    """prompts without it, or any text (mean-centred)"""
    prompts: File
    """prompts to steer"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """folder for the direction, the curve and report.html"""
    neutral: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(texts: required)")] = None
    """text on which the cost is measured"""
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD ...", help_behavior_hint="")] = ()
    """count these words"""
    starts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """count continuations that begin so"""
    model: ModelName = "organism:tales"
    fit: Literal["difference", "principal"] = "difference"
    """difference of means, or the principal component of pairs of texts"""
    sites: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="PATTERN ...", help_behavior_hint="(texts: resid_post.*)")
    ] = ()
    """where to try"""
    last: bool = False
    """read the last token alone, not all of them"""
    strengths: Annotated[tuple[float, ...], tyro.conf.arg(metavar="S ...")] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """doses, in multiples of the direction"""
    budget: Annotated[float | None, tyro.conf.arg(metavar="NATS", help_behavior_hint=f"(default: {BUDGET})")] = None
    """what neutral text may cost a token"""
    measure: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION", help_behavior_hint="")] = None
    """grids: a function of the last frame given and those predicted [input, time, ...] with one number an input; of a
    module, or of a FILE.py"""
    field: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """grids: measure this field of the frames alone"""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """grids: frames that are predicted"""
    drop_space: bool = False
    """grids: add the mean of the direction over space, at all places alike"""
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        arrays = [path.suffix in ARRAYS for path in (self.positive, self.negative, self.prompts)]
        if len(set(arrays)) > 1:
            raise ValueError(f"--positive, --negative and --prompts are all texts or all arrays ({', '.join(ARRAYS)})")
        kind, others = ("arrays", OF_TEXTS) if arrays[0] else ("texts", OF_ARRAYS)
        strange = [name.replace("_", "-") for name in others if given(getattr(self, name))]
        strange += ["fit principal"] if arrays[0] and self.fit == "principal" else []
        if strange:
            raise ValueError(f"inputs that are {kind} take no --{', --'.join(strange)}")
        return self._over_grids() if arrays[0] else self._over_texts()

    def _over_texts(self) -> int:
        from patchclamp import steering, views
        from patchclamp.loading import load

        if bool(self.words) == bool(self.starts):
            raise ValueError("say what to count: either --words or --starts")
        if self.neutral is None:
            raise ValueError("--neutral is missing: text on which the cost of steering is measured")
        high, low, prompts, neutral = map(lines_of, (self.positive, self.negative, self.prompts, self.neutral))
        counted = steering.behaviour.writes_words if self.words else steering.behaviour.begins_with
        behaviour = counted(prompts, self.words or self.starts)
        model = load(self.model)
        pos, sites = -1 if self.last else None, self.sites or ("resid_post.*",)
        if self.fit == "principal":
            found = {s: steering.principal(model, high, low, site=s, pos=-1) for s in model.sites(sites)}
        else:
            found = steering.differences(model, high, low, sites=sites, pos=pos)
        budget = BUDGET if self.budget is None else self.budget
        response = steering.tune(
            model, found, behaviour, neutral=neutral, strengths=self.strengths, budget=budget, seed=self.seed
        )
        response.save(self.out)
        title = f"{behaviour.name}: {response.direction.site}, strength {response.strength:g}"
        show(views.summary(title, response.table()))
        print(f"report: {response.report(self.out / 'report.html')}")
        write(self.json_file, response.to_dict)
        return 0

    def _over_grids(self) -> int:
        from patchclamp import views
        from patchclamp.loading import load
        from patchclamp.steering import fields

        if self.measure is None or not self.sites:
            raise ValueError("arrays need --measure MODULE:FUNCTION and --sites, such as module:blocks.0")
        measure = _function(self.measure)
        high, low, inputs = map(fields.read, (self.positive, self.negative, self.prompts))
        model, steps, number = load(self.model), 1 if self.steps is None else self.steps, self.field
        title, found = f"{self.measure.rpartition(':')[2]} of {model.name}", []
        for site in self.sites:
            delta = fields.difference(model, high, low, site=site)
            found.append(
                fields.response(
                    model,
                    delta.dropped() if self.drop_space else delta,
                    inputs,
                    measure if number is None else lambda frames: measure(frames[:, :, number]),
                    strengths=self.strengths,
                    steps=steps,
                    regimes=(low, high),
                    seed=self.seed,
                )
            )
            found[-1].direction.save(self.out / f"{site.removeprefix('module:')}.safetensors")
            show(views.summary(f"{title}: {site}", found[-1].table(), found[-1].findings()))
        print(f"report: {fields.report(found, self.out / 'report.html', title)}")
        write(self.json_file, lambda: {"model": model.name, "measure": self.measure, "sites": fields.rows(found)})
        return 0


def _function(name: str) -> Callable[[Any], Any]:
    """What MODULE:FUNCTION or FILE.py:FUNCTION means."""
    module, colon, function = name.rpartition(":")
    if not colon:
        raise ValueError(f"--measure {name}: say MODULE:FUNCTION or FILE.py:FUNCTION")
    found = runpy.run_path(module) if module.endswith(".py") else vars(importlib.import_module(module))
    if not callable(found.get(function)):
        raise ValueError(f"--measure {name}: {module} has no function {function!r}")
    return found[function]
