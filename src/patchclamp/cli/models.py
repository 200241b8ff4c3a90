"""Commands about one model: investigate a behaviour, print its certificate."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from patchclamp.cli.arguments import JsonFile, ModelName, Seed, lines_of, said, show, task_called, write

if TYPE_CHECKING:
    from patchclamp.model import Model


@dataclass(frozen=True)
class Investigate:
    """Find the parts of a model that do a task, what they carry, and what changes when they are changed.

    Writes report.html (one file, no network needed) and results.json.

    For example: patchclamp investigate ./my-checkpoint --task my-prompts.jsonl --out report
    """

    model: Positional[ModelName] = "organism:tales"
    task: Annotated[str, tyro.conf.arg(metavar="NAME|FILE.jsonl")] = "ioi"
    """a built-in task, or a file of prompts: lines of {"clean", "corrupt", "answer", "wrong"}"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("patchclamp-report")
    """folder for the report"""
    n: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 128, or the whole file)")] = None
    """number of prompts"""
    dictionary: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """a sparse dictionary whose latents are looked at; without it one is learned"""
    site: Annotated[str | None, tyro.conf.arg(metavar="SITE")] = None
    """the site that the dictionary reads, such as resid_post.2"""
    texts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """text to learn the dictionary from, a document a line; without it the model writes its own"""
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import dictionaries, investigate
        from patchclamp.loading import load

        if (self.dictionary is None) != (self.site is None):
            raise ValueError("--dictionary and --site go together: which dictionary, and what it reads")
        model = load(self.model)
        task = task_called(self.task, model, self.n, self.seed)
        latents = None
        if self.dictionary is not None and self.site is not None:
            found = dictionaries.load(self.dictionary)
            if not isinstance(found, dictionaries.Dictionary):
                raise ValueError(
                    f"{self.dictionary} holds a {type(found).__name__}, which is no dictionary of one site"
                )
            latents = found.as_site(self.site)
        texts = () if self.texts is None else lines_of(self.texts)
        found = investigate.run(model, task, latents=latents, texts=texts, out=self.out, seed=self.seed)
        show(found.summary())
        print(f"report: {self.out / 'report.html'}")
        write(self.json_file, found.to_dict)
        return 0


@dataclass(frozen=True)
class Doctor:
    """Print a model's certificate: each site, where it lives, its shape, and whether its equation holds.

    What the architecture does not have is listed with the reason. Exit status 1 where an equation fails.

    For example: patchclamp doctor organism:tales --json certificate.json
    """

    model: Positional[ModelName]
    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import views
        from patchclamp.loading import load

        model = load(self.model)
        certificate = model.certify()
        sites = places(model)
        title = f"{certificate.model}: {certificate.architecture}, {certificate.implementation} attention, "
        title += f"{certificate.dtype}, transformers {certificate.transformers}"
        show(
            views.summary(
                title, sites, ["A dash under `holds`: no equation names this site; that editing it counts is checked."]
            )
        )
        checks = [
            {"equation": row.equation, "where": row.sites, "holds": said(row.holds), "error": row.error}
            for row in certificate.rows
        ]
        notes = [f"{row.equation}: {row.note}" for row in certificate.rows if row.note]
        show(views.summary("Equations, on a short prompt", checks, notes))
        if certificate.absent:
            absent = [{"not there": site, "why": why} for site, why in certificate.absent]
            show(views.summary("What this architecture does not have", absent))
        print(f"certificate: {'holds' if certificate.holds else 'DOES NOT HOLD'}")
        write(self.json_file, lambda: {**certificate.to_dict(), "sites": sites})
        return 0 if certificate.holds else 1


def places(model: "Model") -> list[dict[str, Any]]:
    """One row for each kind of site: the module where its first layer has it, its shape, its equation, and whether the
    certificate's checks that name it hold (None: no check names it).
    """
    from patchclamp.anatomy.discover import trial_inputs
    from patchclamp.sites import KINDS

    first = {(site.stack, site.kind): site for site in reversed(model.sites())}
    if not first:
        return []
    run = model.run(trial_inputs(model.hf), record=list(first.values()))
    rows = []
    for site in sorted(first.values(), key=lambda site: (site.stack, list(KINDS).index(site.kind))):
        tap = model.anatomy.taps[site]
        free = {"prompt", "pos", "query", "key"}
        sizes = zip(site.dims, run[site].shape, strict=True)
        rows.append(
            {
                "site": str(site),
                "where": f"{tap.port} of {tap.path or type(model.hf).__name__}",
                "shape": " × ".join(name if name in free else f"{name} {size}" for name, size in sizes),
                "equation": KINDS[site.kind].equation,
                "holds": _checked(model, site.stack, site.kind),
            }
        )
    return rows


def _checked(model: "Model", stack: str, kind: str) -> bool | None:
    """Whether the equations that name this kind of site hold; None where none does, or none could be shown."""
    stacks = [name for name in model.anatomy.layers if name]
    found = []
    for row in model.certificate.rows:
        of = next((name for name in stacks if row.sites.startswith(name)), "")
        if of == stack and (re.search(rf"\b{kind}\b", row.equation) or row.sites.rpartition(".")[2] == kind):
            found.append(row.holds)
    return False if False in found else (True in found) or None
