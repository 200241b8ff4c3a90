"""What commands share: kinds of arguments, the task that `--task` means, files of texts, printing, writing JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from patchclamp.model import Model
    from patchclamp.tasks import Task

PROMPTS = 128  # of a built-in task: half of them choose, half judge

JsonFile = Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE", help="write the result here as JSON")]
Seed = Annotated[int, tyro.conf.arg(metavar="SEED", help="of everything random; same seed, same result")]
ModelName = Annotated[str, tyro.conf.arg(metavar="MODEL", help="organism:NAME, a checkpoint folder, or a hub id")]


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
    return build(model, n=PROMPTS if n is None else n, seed=seed)


def given(value: Any) -> bool:
    """Whether an option that is None, False or empty by default was given; 0 was."""
    return value is not None and value is not False and value != ()


def lines_of(path: Path) -> list[str]:
    """The lines of a file that are not blank, each a text; ValueError where there is none."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no lines; one text a line is expected")
    return lines


def said(holds: bool | None) -> str:
    """A check's outcome in words."""
    return {True: "yes", False: "NO", None: "not shown"}[holds]


def show(what: Any) -> None:
    """Print a rich panel or plain text; square brackets in text are text."""
    from rich.console import Console

    Console().print(what, markup=False, highlight=False)


def write(path: Path | None, result: Callable[[], Any]) -> None:
    """Write what `result` returns as JSON, where a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
