"""The command `patchclamp`: parse, call a room, print.

Rooms are imported inside the commands, so that help answers at once and a misspelt option costs nothing.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

if TYPE_CHECKING:
    from patchclamp.model import Model
    from patchclamp.tasks import Task

_PROMPTS = 128  # of a built-in task: half of them choose, half judge

JsonFile = Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE", help="write the result here as JSON")]
Seed = Annotated[int, tyro.conf.arg(metavar="SEED", help="of everything random; same seed, same result")]
ModelName = Annotated[str, tyro.conf.arg(metavar="MODEL", help="organism:NAME, a checkpoint folder, or a hub id")]


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
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import investigate
        from patchclamp.loading import load

        model = load(self.model)
        found = investigate.run(model, task_called(self.task, model, self.n, self.seed), out=self.out, seed=self.seed)
        _show(found.summary())
        print(f"report: {self.out / 'report.html'}")
        _write(self.json_file, found.to_dict)
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
        _show(
            views.summary(
                title, sites, ["A dash under `holds`: no equation names this site; that editing it counts is checked."]
            )
        )
        checks = [
            {"equation": row.equation, "where": row.sites, "holds": _said(row.holds), "error": row.error}
            for row in certificate.rows
        ]
        notes = [f"{row.equation}: {row.note}" for row in certificate.rows if row.note]
        _show(views.summary("Equations, on a short prompt", checks, notes))
        if certificate.absent:
            absent = [{"not there": site, "why": why} for site, why in certificate.absent]
            _show(views.summary("What this architecture does not have", absent))
        print(f"certificate: {'holds' if certificate.holds else 'DOES NOT HOLD'}")
        _write(self.json_file, lambda: {**certificate.to_dict(), "sites": sites})
        return 0 if certificate.holds else 1


@dataclass(frozen=True)
class Record:
    """Store a model's activations on a corpus: many sites in one pass. Interrupted, it goes on where it stopped.

    The bill (rows, bytes, time) is printed first.

    For example: patchclamp record organism:tales texts/ --sites resid_post.2 mlp_out.2 --out acts --tokens 100000
    """

    model: Positional[ModelName]
    corpus: Positional[Annotated[str, tyro.conf.arg(metavar="TEXTS", help="files, folder, dataset, or organism:NAME")]]
    sites: tuple[str, ...]
    """sites or patterns of sites"""
    out: Annotated[str, tyro.conf.arg(metavar="DIR|URL", help="a folder, or any URL that fsspec knows")]
    tokens: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """tokens to record"""
    dtype: Annotated[str, tyro.conf.arg(metavar="bfloat16|float32|int8")] = "bfloat16"
    """how activations are kept"""
    engine: Annotated[str, tyro.conf.arg(metavar="local|torchrun|ray")] = "local"
    """who does the work"""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the engine's)")] = None
    """how many of them"""
    seed: Seed = 0

    def run(self) -> int:
        from patchclamp import organisms, store
        from patchclamp.loading import load

        name = self.corpus.removeprefix("organism:")
        made = store.record(
            load(self.model),
            self.corpus if name == self.corpus else organisms.truth(name),
            self.sites,
            self.out,
            tokens=self.tokens,
            dtype=self.dtype,
            engine=self.engine,
            workers=self.workers,
            seed=self.seed,
        )
        print(f"store: {self.out}, {made.rows:,} rows")
        return 0


@dataclass(frozen=True)
class Learn:
    """Learn a sparse dictionary from a store. Interrupted, the same command goes on where it stopped.

    For example: patchclamp train acts --site resid_post.2 --part TopK --k 32 --width 4096 --out dictionary
    """

    store: Positional[Annotated[str, tyro.conf.arg(metavar="STORE", help="what `patchclamp record` wrote")]]
    site: Annotated[str, tyro.conf.arg(metavar="SITE")]
    """whose activations"""
    width: Annotated[int, tyro.conf.arg(metavar="N")]
    """latents"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """folder for the dictionary, its metrics and its checkpoint"""
    part: Annotated[str, tyro.conf.arg(metavar="NAME")] = "BatchTopK"
    """TopK, AbsoluteTopK, GroupMax, BatchTopK (with --k); ReLU, PAnneal, Gated, JumpReLU (with --l0, or --l1)"""
    k: Annotated[int | None, tyro.conf.arg(metavar="K", help_behavior_hint="")] = None
    """active latents of a row"""
    l0: Annotated[float | None, tyro.conf.arg(metavar="L0", help_behavior_hint="")] = None
    """active latents of a row, on average"""
    l1: Annotated[float | None, tyro.conf.arg(metavar="L1", help_behavior_hint="")] = None
    """weight of the penalty"""
    groups: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="(default: not nested)")] = ()
    """sizes of nested prefixes (Matryoshka), the last being the width"""
    tokens: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one pass)")] = None
    """rows to learn from"""
    seed: Seed = 0

    def run(self) -> int:
        from patchclamp import dictionaries, store

        part = dictionaries.part(self.part, k=self.k, l0=self.l0, l1=self.l1, groups=self.groups)
        rows = store.open(self.store)[self.site]
        found = dictionaries.train(part, rows, width=self.width, tokens=self.tokens, seed=self.seed, out=self.out)
        print(f"dictionary: {self.out}, {found.width} latents")
        return 0


@dataclass(frozen=True)
class Study:
    """Run one study: a paper's claims, measured on a network whose truth is known, each beside its control.

    For example: patchclamp study patching-best-practices --json verdict.json
    """

    name: Positional[Annotated[str, tyro.conf.arg(metavar="NAME", help="as `patchclamp studies` lists it")]]
    full: bool = False
    """at the size of the paper's experiment, not the quick one"""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: the study's own)")] = None
    """organism:NAME, folder or hub id; `random` is the same network with random weights, where no finding may hold"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: nowhere)")] = None
    """folder for verdict.json and report.html"""
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import studies, views

        verdict = studies.run(self.name, full=self.full, model=self.model, seed=self.seed, out=self.out).to_dict()
        columns = ("claim", "kind", "measured", "interval", "threshold", "control", "holds")
        claims = [{column: claim.get(column) for column in columns} for claim in verdict["claims"]]
        _show(views.summary(f"{verdict['study']}: {verdict['paper']}", claims))
        print(f"{verdict['study']} on {verdict['organism']}: {'holds' if verdict['holds'] else 'does not hold'}")
        if self.out is not None:
            print(f"report: {self.out / 'report.html'}")
        _write(self.json_file, lambda: verdict)
        return 0


@dataclass(frozen=True)
class Studies:
    """List the studies: name, paper, and the room whose method it uses.

    For example: patchclamp studies --json studies.json
    """

    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import studies, views

        rows = studies.rows()
        _show(views.summary(f"{len(rows)} studies", rows))
        _write(self.json_file, lambda: rows)
        return 0


@dataclass(frozen=True)
class List:
    """List the organisms (what `patchclamp organisms` does by itself)."""

    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import organisms, views

        rows = organisms.describe()
        _show(views.summary("Networks whose truth is known: patchclamp investigate organism:NAME", rows))
        _write(self.json_file, lambda: rows)
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


@dataclass(frozen=True)
class Patchclamp:
    """Record, patch and clamp the activations of a network, and turn that into an explanation.

    For example: patchclamp investigate organism:tales --task ioi
    """

    command: (
        Investigate | Doctor | Record | Annotated[Learn, tyro.conf.subcommand("train")] | Study | Studies | Organisms
    )
    debug: bool = False
    """print the traceback of an error"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 a certificate that does not hold, 2 an error, 130 interrupted."""
    config = (
        tyro.conf.CascadeSubcommandArgs,
        tyro.conf.OmitArgPrefixes,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.FlagCreatePairsOff,
    )
    chosen = tyro.cli(Patchclamp, prog="patchclamp", args=arguments, config=config)
    try:
        status = chosen.command.run()
    # What a room raises on purpose; any other kind is a fault of ours, and its traceback is what helps.
    except (ValueError, LookupError, OSError, ImportError) as error:
        if chosen.debug:
            raise
        message = str(error.args[0]) if type(error) is KeyError and error.args else str(error)
        print(f"patchclamp: {message or type(error).__name__}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("patchclamp: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def task_called(name: str, model: "Model", n: int | None = None, seed: int = 0) -> "Task":
    """The task that `--task` means: a built-in one with `n` prompts (128), or the first `n` of a JSONL file (all).

    FileNotFoundError or LookupError with the nearest name where there is none; ValueError where a file has fewer than
    `n` prompts.
    """
    from patchclamp import tasks

    path = Path(name).expanduser()
    if path.suffix == ".jsonl" or path.is_file():
        task = tasks.Task.from_jsonl(path, model)
        if n is not None and not 1 <= n <= len(task):
            raise ValueError(f"--n {n}, but {name} has {len(task)} prompts; leave --n out to use them all")
        return task if n is None else task[:n]
    build = tasks.by_name(name)
    return build(model, n=_PROMPTS if n is None else n, seed=seed)


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


def _said(holds: bool | None) -> str:
    return {True: "yes", False: "NO", None: "not shown"}[holds]


def _show(what: Any) -> None:
    """Print a rich panel or plain text; square brackets in text are text."""
    from rich.console import Console

    Console().print(what, markup=False, highlight=False)


def _write(path: Path | None, result: Callable[[], Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
