"""Probe a model on a file of labelled texts: what `patchclamp probe` calls.

    scores = probe_file(model, "labels.csv", sites="resid_post.*", probe="logistic")

A line of JSONL is {"text": ..., "label": ...}, or {"text": ..., "labels": {"spanish": 1, "polite": 0}}; a CSV has the
columns text and label, or text and one column of 0 and 1 for each label. "group" keeps texts on one side of a fold.
Labels of which one is a fraction (3.5) are numbers, and so is what a probe for numbers reads (ridge-regression).
"""

import csv
import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from patchclamp.model import Model
from patchclamp.probes import scan
from patchclamp.probes.estimator import Estimator
from patchclamp.probes.linear import LDA, DifferenceOfMeans, NearestMean, Ridge
from patchclamp.probes.logistic import Logistic
from patchclamp.probes.neural import MLP
from patchclamp.probes.regression import MLPRegression, RidgeRegression, SparseRegression
from patchclamp.probes.scan import Scores
from patchclamp.probes.sparse import KSparse

BY_NAME: dict[str, Callable[[], Estimator]] = {
    "logistic": lambda: Logistic(C=0.1, balanced=True, standardise=True),
    "ridge": Ridge,
    "means": DifferenceOfMeans,
    "nearest-mean": NearestMean,
    "lda": LDA,
    "mlp": MLP,
    "ridge-regression": RidgeRegression,
    "mlp-regression": MLPRegression,
}


def by_name(name: str) -> Estimator:
    """An estimator by its name on the command line; "sparse:3" and "sparse:3:l1" are k-sparse, "sparse-regression:3"
    for numbers.

    LookupError with the names that there are.
    """
    if name.startswith("sparse:"):
        k, _, selector = name.removeprefix("sparse:").partition(":")
        return KSparse(int(k), selector=selector or "f")
    if name.startswith("sparse-regression:"):
        k, _, selector = name.removeprefix("sparse-regression:").partition(":")
        return SparseRegression(int(k), selector=selector or "greedy")
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        names = ", ".join([*BY_NAME, "sparse:K", "sparse:K:SELECTOR", "sparse-regression:K"])
        raise LookupError(f"no probe is called {name!r}. {hint}There are: {names}.")
    return BY_NAME[name]()


def probe_file(
    model: Model,
    path: str | Path,
    *,
    sites: str | Sequence[str] = "resid_post.*",
    positions: Any = "last",
    probe: str | None = None,
    measure: str | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Scores:
    """`pc.probes.probe` on the texts of a file; without `probe` "logistic", or "ridge-regression" for numbers.

    ValueError, with file and line, for a line that lacks something.
    """
    texts, labels, groups = read(path)
    plain = None if isinstance(labels, dict) else _numbers(labels)
    if probe is None:
        probe = "ridge-regression" if scan.has_fractions(labels if plain is None else plain) else "logistic"
    kind = by_name(probe)
    if kind.numbers and not isinstance(labels, dict):
        if plain is None:
            raise ValueError(f"{path}: {probe} reads numbers, and not every label is one")
        labels = plain
    return scan.probe(
        model,
        texts,
        labels,
        sites=sites,
        positions=positions,
        probe=kind,
        measure=measure,
        folds=folds,
        groups=groups,
        seed=seed,
    )


def read(path: str | Path) -> tuple[list[str], Any, list[str] | None]:
    """Texts, labels (a list, or columns by name) and groups (None where there are none) of a JSONL or CSV file."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".csv"):
        raise ValueError(f"{path}: expected a file that ends in .jsonl or .csv")
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            rows = [(number, _nested(row)) for number, row in enumerate(csv.DictReader(file), start=2)]
        else:
            rows = [(number, json.loads(line)) for number, line in enumerate(file, start=1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no lines")
    several = "labels" in rows[0][1]
    wanted = "labels" if several else "label"
    for number, row in rows:
        missing = [key for key in ("text", wanted) if key not in row]
        if missing or (several and row["labels"].keys() != rows[0][1]["labels"].keys()):
            raise ValueError(f"{path}, line {number}: expected text and {wanted}, as in the first line")
    found = [row for _, row in rows]
    labels: Any = [row[wanted] for row in found]
    if several:
        labels = {name: [float(row[name]) for row in labels] for name in labels[0]}
    groups = [str(row["group"]) for row in found] if all("group" in row for row in found) else None
    return [row["text"] for row in found], labels, groups


def _numbers(labels: Sequence[Any]) -> list[float] | None:
    """Labels as numbers, None where one of them is none."""
    try:
        return [float(label) for label in labels]
    except (TypeError, ValueError):
        return None


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """A line of a CSV as a line of JSONL."""
    if "label" in row:
        return row
    known = {key: row[key] for key in ("text", "group") if key in row}
    return {**known, "labels": {key: value for key, value in row.items() if key not in ("text", "group")}}
