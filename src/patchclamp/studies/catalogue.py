"""Which studies there are. A study is found by its file, and listed by reading the file: nothing is imported."""

import ast
import difflib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchclamp.studies.study import Study

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every study's name, in alphabetical order: that of its file, with dashes."""
    return sorted(_files(FOLDER))


def rows(folder: Path = FOLDER) -> list[dict[str, str]]:
    """One row a study: `study`, `paper`, `seed` (the file with the paper's text) and `room`.

    Raises `SyntaxError` for a file whose header `study = Study(...)` is missing, is not made of plain strings, or has
    another name than the file.
    """
    return [
        {"study": name, "paper": header["paper"], "seed": header["seed"], "room": path.parent.name}
        for name, path in sorted(_files(folder).items())
        for header in [_header(path, name)]
    ]


def load(name: str) -> "Study":
    """The study called `name`; LookupError with the nearest name where there is none."""
    found = _files(FOLDER)
    key = name.strip().lower().replace("_", "-")
    if key not in found:
        near = difflib.get_close_matches(key, found, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise LookupError(f"no study is called {name!r}. {hint}There are: {', '.join(sorted(found))}.")
    path = found[key]
    return import_module(f"patchclamp.studies.{path.parent.name}.{path.stem}").study


def _files(folder: Path) -> dict[str, Path]:
    return {path.stem.replace("_", "-"): path for path in folder.glob("*/*.py") if not path.stem.startswith("_")}


def _header(path: Path, name: str) -> dict[str, str]:
    """The strings of a file's `study = Study(...)`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        if [getattr(target, "id", "") for target in node.targets] != ["study"]:
            continue
        words = {key.arg: key.value.value for key in node.value.keywords if isinstance(key.value, ast.Constant)}
        header = {str(key): str(value) for key, value in words.items()}
        missing = [key for key in ("name", "paper", "seed", "organism") if key not in header]
        if missing:
            raise SyntaxError(f"{path}: study = Study(...) must give {', '.join(missing)} as plain strings")
        if header["name"] != name:
            raise SyntaxError(f"{path}: the study is called {header['name']!r}, but its file says {name!r}")
        return header
    raise SyntaxError(f"{path} has no study = Study(name=..., paper=..., seed=..., organism=...)")
