"""Commands about the networks whose truth is known: list them, train one again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from patchclamp.cli.arguments import JsonFile, show, write


@dataclass(frozen=True)
class List:
    """List the organisms (what `patchclamp organisms` does by itself)."""

    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import organisms, views

        rows = organisms.describe()
        show(views.summary("Networks whose truth is known: patchclamp investigate organism:NAME", rows))
        write(self.json_file, lambda: rows)
        return 0


@dataclass(frozen=True)
class Train:
    """Train an organism again from its recipe; interrupted, it goes on where it stopped.

    For example: patchclamp organisms train tales --seed 1 --out runs/tales-1
    """

    name: Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/NAME)")] = None
    """folder for the checkpoint"""
    seed: Annotated[int | None, tyro.conf.arg(metavar="SEED", help_behavior_hint="(default: as shipped)")] = None
    """of the initial weights and the data"""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: as shipped)")] = None
    """a shorter or longer recipe"""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """cpu, cuda, cuda:1, mps"""

    def run(self) -> int:
        from patchclamp import organisms

        name = self.name.removeprefix("organism:")
        out = self.out or Path("runs") / name.replace(":", "--")
        losses = organisms.train(name, out, seed=self.seed, steps=self.steps, device=self.device)
        print(f"trained: {out}, loss {losses[-1]:.4g} after {len(losses)} steps")
        return 0


@dataclass(frozen=True)
class Organisms:
    """List the networks whose truth is known, or train one of them again.

    For example: patchclamp organisms --json organisms.json
    """

    action: List | Train = List()

    def run(self) -> int:
        return self.action.run()
