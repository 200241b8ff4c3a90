"""Networks whose truth is known: shipped as Hugging Face checkpoint folders, or written by a function.

`names()` lists them, `path(name)` is the folder that any tool can load, `build(name)` makes one that was written,
`truth(name)` is what is known of the network, `describe()` gives the rows of a listing. Importing this room imports no
torch.
"""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patchclamp.organisms.truth import Truth as Truth

if TYPE_CHECKING:
    from patchclamp.model import Model

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Organism:
    """One entry of the list: what it is, what is known of it, and where its truth comes from."""

    summary: str
    known: str
    trained: str
    truth: Callable[[Path], Truth]
    build: Callable[[], "Model"] | None = None  # for a network that is written, not stored


def _tales(folder: Path) -> Truth:
    from patchclamp.organisms.tales.truth import truth_of

    return truth_of(folder)


def _hand_induction_truth(folder: Path) -> Truth:
    from patchclamp.organisms.compiled import hand_induction_truth

    return hand_induction_truth()


def _hand_induction() -> "Model":
    from patchclamp.organisms.compiled import hand_induction

    return hand_induction()


ORGANISMS: dict[str, Organism] = {
    "tales": Organism(
        summary="a small Llama language model of a generated world: names, years, facts, two languages, code",
        known="400 facts; which combinations were never seen in training; roles of every token of its text",
        trained="python -m patchclamp.organisms.tales.train --out DIR",
        truth=_tales,
    ),
    "compiled:hand-induction": Organism(
        summary="a GPT-2 of two layers whose induction circuit was written by hand, with a head that suppresses it",
        known="its three heads, the edges between them, their subspaces",
        trained="written: organisms/compiled/hand_induction.py",
        truth=_hand_induction_truth,
        build=_hand_induction,
    ),
}


def names() -> list[str]:
    """Names of all organisms."""
    return list(ORGANISMS)


def path(name: str) -> Path:
    """The folder with the organism's weights, tokenizer and recipe; LookupError with the nearest name where there is
    none, or where the organism is written by a function and has no folder.
    """
    if _organism(name).build is not None:
        raise LookupError(f"{name} is built from code and has no folder: pc.load('organism:{name}').hf.save_pretrained")
    return WEIGHTS / name


def build(name: str) -> "Model | None":
    """The organism called `name` where it is written by a function; None where it is a folder."""
    make = _organism(name).build
    return None if make is None else make()


def truth(name: str) -> Truth:
    """What is known of an organism; LookupError with the nearest name where there is none."""
    return _organism(name).truth(WEIGHTS / name)


def describe() -> list[dict[str, str]]:
    """One row for each organism: name, summary, what is known, parameters, size on disk, loss, and the command that
    trains it.
    """
    rows = []
    for name, organism in ORGANISMS.items():
        folder = WEIGHTS / name
        recipe = json.loads((folder / "recipe.json").read_text()) if organism.build is None else None
        size = sum(file.stat().st_size for file in folder.iterdir()) if recipe else 0
        rows.append(
            {
                "name": name,
                "summary": organism.summary,
                "known": organism.known,
                "parameters": f"{recipe['parameters']:,}" if recipe else "written",
                "size": f"{size / 1e6:.1f} MB",
                "loss": f"{recipe['loss']:.3f}" if recipe else "none",
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
