"""The command that scores methods on networks whose truth is known."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from patchclamp.cli.arguments import JsonFile, Seed, show, write


@dataclass(frozen=True)
class Bench:
    """Score every method of a room on the networks whose truth is known, beside chance.

    `circuits`: how well each method's edges are told from the others (AUROC) on compiled and circuit-planted programs.

    For example: patchclamp bench circuits --json table.json
    """

    room: Positional[Annotated[Literal["circuits"], tyro.conf.arg(metavar="circuits")]]
    programs: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all)")] = ()
    """organisms to score on"""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all)")] = ()
    """methods to score"""
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import views
        from patchclamp.circuits import bench

        rows = bench.run(self.programs or bench.PROGRAMS, self.methods or tuple(bench.METHODS), seed=self.seed)
        methods = dict.fromkeys(row["method"] for row in rows)
        by_program = [
            {"program": program} | {row["method"]: row["auroc"] for row in rows if row["program"] == program}
            for program in dict.fromkeys(row["program"] for row in rows)
        ]
        mean = bench.means(rows)
        title = "How well known edges are told from others (area under the ROC curve)"
        show(views.summary(title, [*by_program, {"program": "mean"} | {name: mean[name] for name in methods}]))
        write(self.json_file, lambda: rows)
        return 0
