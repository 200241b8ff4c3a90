"""Kinds of probes over layers x positions x labels in one call, each against a loop of its scikit-learn counterpart.

    .venv/bin/python bench/probe_kinds.py --json bench/results/probe_kinds.json

At equal accuracy on rows that nothing was fitted on: ridge, discriminant and nearest mean are the same estimator on
both sides; logistic regression stops here once its objective is within 3 % of the optimum (chosen on seed 0), and there
at scikit-learn's default tolerance. With ten times that tolerance it is as accurate on these rows and quicker: that is
printed beside it, without a claim. To one optimum: `bench/probes.py`. Activations of `tales` as there, one thread,
processor time, sides in turns; scikit-learn fits a part of the problems, and its time is scaled up to all. Ends with
status 1 if a claim fails.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from protocol import Claim, report, take_turns
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid

from patchclamp.probes import LDA, Logistic, NearestMean, Ridge
from probes import SETTINGS, activations, loaded

FASTER, LOSS = 20.0, 0.001
KINDS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "logistic": (partial(Logistic, tolerance=0.03), partial(LogisticRegression, max_iter=1000)),
    "ridge": (partial(Ridge, 1.0), partial(RidgeClassifier, alpha=1.0)),
    "discriminant": (partial(LDA, 0.001), partial(LinearDiscriminantAnalysis, solver="lsqr", shrinkage=0.001)),
    "nearest mean": (NearestMean, NearestCentroid),
}
BESIDE = {"logistic, tol=1e-3": ("logistic", partial(LogisticRegression, max_iter=1000, tol=1e-3))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()

    torch.set_num_threads(1)
    setting = SETTINGS["tales"]
    x, y = activations(loaded("tales", chosen.seed), replace(setting, rows=2 * setting.rows), chosen.seed)
    (x, held), (y, asked) = x.split(setting.rows, 2), y.split(setting.rows, 1)
    x, held, layers = x.contiguous(), held.contiguous(), len(x)
    every = list(np.ndindex(*x.shape[:2], y.shape[-1]))
    part = every[:: setting.every]
    rows, scale = x.numpy(), len(every) / len(part)
    ours: dict[str, Any] = {}
    theirs: dict[str, list[Any]] = {}

    def fit(name: str, make: Callable[[], Any]) -> None:
        ours[name] = make().fit(x, y.expand(layers, -1, -1, -1))

    def loop(name: str, make: Callable[[], Any]) -> None:
        theirs[name] = [make().fit(rows[layer, pos], y[pos, :, label].numpy()) for layer, pos, label in part]

    sides = {f"patchclamp {name}": partial(fit, name, make) for name, (make, _) in KINDS.items()}
    loops = {name: make for name, (_, make) in KINDS.items()} | {name: make for name, (_, make) in BESIDE.items()}
    sides |= {f"scikit-learn {name}, {len(part)} of them": partial(loop, name, make) for name, make in loops.items()}
    timings = take_turns(sides, rounds=chosen.rounds)

    def right(name: str) -> tuple[float, float]:
        """Accuracy on held-out rows, ours and theirs, of the problems that both fitted."""
        own, found = ours[BESIDE.get(name, (name,))[0]].predict(held), []
        for (layer, pos, label), peer in zip(part, theirs[name], strict=True):
            truth, said = asked[pos, :, label].numpy(), (own[layer, pos, :, label].numpy(), held[layer, pos].numpy())
            found.append(((said[0] == truth).mean(), (peer.predict(said[1]) == truth).mean()))
        mine, peers = np.mean(found, 0).tolist()
        return mine, peers

    claims, measured = [], {}
    for name in loops:
        ratio = timings.ratio(
            [f"scikit-learn {name}, {len(part)} of them"], [f"patchclamp {BESIDE.get(name, (name,))[0]}"], cpu=True
        )
        speed, low, high = (scale * value for value in (ratio.median, *ratio.interval))
        mine, peers = right(name)
        measured[name] = {"ratio": speed, "interval": (low, high), "held-out accuracy": mine, "scikit-learn's": peers}
        print(f"{name:22} {speed:5.1f} times as fast [{low:.1f}, {high:.1f}], accuracy {mine:.4f} beside {peers:.4f}")
        if name in KINDS:
            said = f"{name}: {len(every)} probes are at least {FASTER:g} times as fast"
            claims.append(Claim(said, speed, (low, high), FASTER, speed >= FASTER))
            claims.append(
                Claim(f"{name}: held-out accuracy falls behind by", peers - mine, None, LOSS, peers - mine <= LOSS)
            )
    return report(
        "probe_kinds",
        threads=1,
        setting={"shape": list(x.shape), "labels": y.shape[-1]},
        timings=timings,
        claims=claims,
        measured=measured,
        path=chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
