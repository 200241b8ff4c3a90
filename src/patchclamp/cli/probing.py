"""The command that asks what can be read from a model's activations, beside what can be read from anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from patchclamp.cli.arguments import JsonFile, ModelName, Seed, show, write


@dataclass(frozen=True)
class Probe:
    """Cross-validated probes at every site and position, beside shuffled labels, random activations and bags of tokens.

    FILE has a text and its labels (true or false, or numbers) a line: JSONL {"text": ..., "labels": {...}} or CSV with
    a header.

    For example: patchclamp probe sentences.csv --model organism:tales --sites resid_post.* --out probes
    """

    file: Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    model: ModelName = "organism:tales"
    sites: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = "resid_post.*"
    """where to read"""
    positions: Annotated[str, tyro.conf.arg(metavar="last|each|tokens")] = "last"
    """which tokens to read: each text's last, every position apart, or all tokens as rows"""
    probe: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: logistic; ridge-regression for numbers)"),
    ] = None
    """logistic, ridge, means, nearest-mean, lda, mlp, sparse:K or sparse:K:SELECTOR; for numbers ridge-regression,
    mlp-regression or sparse-regression:K"""
    measure: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: auc; r2 for numbers)")
    ] = None
    """what is scored: auc, accuracy, balanced_accuracy, f1, mcc; for numbers r2, correlation"""
    folds: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """of the cross-validation"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: nowhere)")] = None
    """folder for the scores"""
    seed: Seed = 0
    json_file: JsonFile = None

    def run(self) -> int:
        from patchclamp import probes, views
        from patchclamp.loading import load

        found = probes.probe_file(
            load(self.model),
            self.file,
            sites=self.sites,
            positions=self.positions,
            probe=self.probe,
            measure=self.measure,
            folds=self.folds,
            seed=self.seed,
        )
        facts = found.table.attrs
        rows = found.table.to_dataframe().reset_index().to_dict("records")
        show(views.summary(f"{facts['probe']}, {facts['measure']}, {self.folds} folds", rows))
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            found.save(self.out / "scores.pt")
            print(f"scores: {self.out / 'scores.pt'}")
        write(self.json_file, lambda: rows)
        return 0
