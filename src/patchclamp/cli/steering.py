"""The command that finds a direction between two sets of prompts and says what adding it does, dose by dose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from patchclamp.cli.arguments import JsonFile, ModelName, Seed, lines_of, show, write

Lines = Annotated[Path, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class Steer:
    """Find the direction from some prompts to others, and measure what adding it does, by site and strength.

    Each file has a prompt a line. The effect is counted in what the model writes after --prompts: the share of --words,
    or how often it begins with --starts. Site and strength are chosen on half of them, figures are of the other half.

    For example: patchclamp steer --positive sea.txt --negative forest.txt --prompts prompts.txt --neutral text.txt
    --words ship wave harbour --out steering
    """

    positive: Lines
    """prompts with what is wanted"""
    negative: Lines
    """prompts without it, or any text (mean-centred)"""
    prompts: Lines
    """prompts to steer"""
    neutral: Lines
    """text on which the cost is measured"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """folder for the direction, the curve and report.html"""
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD ...")] = ()
    """count these words"""
    starts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")] = ()
    """count continuations that begin so"""
    model: ModelName = "organism:tales"
    fit: Literal["difference", "principal"] = "difference"
    """difference of means, or the principal component of pairs"""
    sites: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = "resid_post.*"
    """where to try"""
    last: bool = False
    """read the last token alone, not all of them"""
    strengths: Annotated[tuple[float, ...], tyro.conf.arg(metavar="S ...")] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """doses, in multiples of the direction"""
    budget: Annotated[float, tyro.conf.arg(metavar="NATS")] = 0.1
    """what neutral text may cost a token"""
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import steering, views
        from patchclamp.loading import load

        if bool(self.words) == bool(self.starts):
            raise ValueError("say what to count: either --words or --starts")
        high, low, prompts, neutral = map(lines_of, (self.positive, self.negative, self.prompts, self.neutral))
        counted = steering.behaviour.writes_words if self.words else steering.behaviour.begins_with
        behaviour = counted(prompts, self.words or self.starts)
        model = load(self.model)
        pos = -1 if self.last else None
        if self.fit == "difference":
            found = steering.differences(model, high, low, sites=self.sites, pos=pos)
        else:
            found = {s: steering.principal(model, high, low, site=s, pos=-1) for s in model.sites(self.sites)}
        response = steering.tune(
            model, found, behaviour, neutral=neutral, strengths=self.strengths, budget=self.budget, seed=self.seed
        )
        response.save(self.out)
        title = f"{behaviour.name}: {response.direction.site}, strength {response.strength:g}"
        show(views.summary(title, response.table()))
        print(f"report: {response.report(self.out / 'report.html')}")
        write(self.json_file, response.to_dict)
        return 0
