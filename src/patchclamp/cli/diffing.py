"""The command that asks what a fine-tune has in it that its base has not, on text about anything else."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from patchclamp.cli.arguments import JsonFile, Seed, lines_of, show, write

if TYPE_CHECKING:
    from patchclamp.model import Model
    from patchclamp.steering.diffing import Topics

DOCUMENTS = 256  # of an organism


@dataclass(frozen=True)
class Diff:
    """Compare a fine-tune with its base: how far their activations differ on text about anything, and what that says.

    The difference on the first tokens is read through the unembedding, after prompts that repeat tokens, and by adding
    it to the base while it writes, each beside random vectors of the same lengths.

    For example: patchclamp diff organism:tales organism:tales-sea --texts organism:tales --out diff
    """

    base: Positional[Annotated[str, tyro.conf.arg(metavar="BASE", help="organism:NAME, a checkpoint folder, hub id")]]
    tuned: Positional[Annotated[str, tyro.conf.arg(metavar="TUNED", help="the same, after fine-tuning")]]
    texts: Annotated[str, tyro.conf.arg(metavar="FILE|organism:NAME")]
    """text that has nothing to do with the fine-tuning, one a line"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """folder for the difference as a direction, what was read from it, and report.html"""
    site: Annotated[str | None, tyro.conf.arg(metavar="SITE", help_behavior_hint="(default: half-way)")] = None
    """where it is read, in the residual stream"""
    positions: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """tokens at the beginning of each text"""
    openings: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: of the texts)")] = None
    """beginnings that the models continue, one a line"""
    topics: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """candidates for what the tuning was about: DIR/NAME.txt has texts about NAME, one a line"""
    ordinary: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """ordinary text that a topic has to explain the difference better than, one a line"""
    controls: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """random vectors that are read beside it"""
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        if (self.topics is None) != (self.ordinary is None):
            raise ValueError("--topics and --ordinary go together: a topic is told against ordinary text")
        from patchclamp import steering, views
        from patchclamp.loading import load

        texts = self._texts()
        openings = lines_of(self.openings) if self.openings else ()
        base, tuned = load(self.base), load(self.tuned)
        found = steering.compare(
            base,
            tuned,
            texts,
            site=self.site,
            positions=self.positions,
            openings=openings,
            candidates=self._candidates(base),
            controls=self.controls,
            seed=self.seed,
        )
        show(views.summary(f"{tuned.name} less {base.name}", found.readings(8), found.findings()))
        found.save(self.out)
        print(f"report: {found.report(self.out / 'report.html')}")
        write(self.json_file, found.to_dict)
        return 0

    def _texts(self) -> list[str]:
        from patchclamp import organisms

        name = self.texts.removeprefix("organism:")
        if name == self.texts:
            return lines_of(Path(self.texts))
        return [document.text for document in organisms.truth(name).documents(DOCUMENTS, seed=self.seed)]

    def _candidates(self, base: "Model") -> "Topics | None":
        from patchclamp.steering import diffing

        if self.topics is None or self.ordinary is None:
            return None
        files = sorted(self.topics.glob("*.txt"))
        if not files:
            raise ValueError(f"{self.topics} has no NAME.txt; each such file has texts about NAME, one a line")
        return diffing.topics(base, {file.stem: lines_of(file) for file in files}, lines_of(self.ordinary))
