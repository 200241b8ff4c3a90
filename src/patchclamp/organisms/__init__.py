"""Networks whose truth is known, shipped as Hugging Face checkpoint folders.

`names()` lists them, `path(name)` is the folder that any tool can load, `truth(name)` is what is known of the
network, `describe()` gives the rows of a listing. Importing this room imports no torch.
"""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from patchclamp.organisms.truth import Truth as Truth

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Organism:
    """One entry of the list: what it is, what is known of it, and where its truth comes from."""

    summary: str
    known: str
    trained: str
    truth: Callable[[Path], Truth]


def _tales(folder: Path) -> Truth:
    from patchclamp.organisms.tales.truth import truth_of

    return truth_of(folder)


ORGANISMS: dict[str, Organism] = {
    "tales": Organism(
        summary="a small Llama language model of a generated world: names, years, facts, two languages, code",
        known="400 facts; which combinations were never seen in training; roles of every token of its text",
        trained="python -m patchclamp.organisms.tales.train --out DIR",
        truth=_tales,
    ),
}


def names() -> list[str]:
    """Names of all organisms."""
    return list(ORGANISMS)


def path(name: str) -> Path:
    """The folder with the organism's weights, tokenizer and recipe; LookupError with the nearest name where there is
    none.
    """
    _organism(name)
    return WEIGHTS / name


def truth(name: str) -> Truth:
    """What is known of an organism; LookupError with the nearest name where there is none."""
    return _organism(name).truth(path(name))


def describe() -> list[dict[str, str]]:
    """One row for each organism: name, summary, what is known, parameters, size on disk, loss, and the command that
    trains it.
    """
    rows = []
    for name, organism in ORGANISMS.items():
        folder = WEIGHTS / name
        recipe = json.loads((folder / "recipe.json").read_text())
        size = sum(file.stat().st_size for file in folder.iterdir())
        rows.append(
            {
                "name": name,
                "summary": organism.summary,
                "known": organism.known,
                "parameters": f"{recipe['parameters']:,}",
                "size": f"{size / 1e6:.1f} MB",
                "loss": f"{recipe['loss']:.3f}",
                "trained": organism.trained,
            }
        )
    return rows


def _organism(name: str) -> Organism:
    if name in ORGANISMS:
        return ORGANISMS[name]
    near = difflib.get_close_matches(name.removeprefix("organism:").lower(), ORGANISMS, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise LookupError(f"no organism is called '{name}'. {hint}There are: {', '.join(ORGANISMS)}.")
