"""Logistic probes over layers x positions x labels in one call, against a loop of scikit-learn fits, on one thread.

    .venv/bin/python bench/probes.py --json bench/results/probes.json

Activations of `tales` at the stream after each layer, at the last positions of its own documents; labels are roles,
kinds and first letters of the tokens. Both sides in float64 with the same C, in turns within each round; scikit-learn
fits a part of the problems, and its time is scaled up to all. Ends with status 1 if a claim fails.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from protocol import Claim, report, take_turns
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import patchclamp as pc
from patchclamp.organisms.tales.labels import token_labels
from patchclamp.probes import Logistic
from patchclamp.probes.logistic import objective

POSITIONS, LABELS, EVERY = 8, 16, 16


def activations(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float[layer, pos, row, d] and labels [pos, row, label]: the most frequent names of the tokens there."""
    model, truth = pc.load("organism:tales"), pc.organisms.truth("tales")
    long = [d for d in truth.documents(4 * rows, seed) if len(model.tokenizer(d.text)["input_ids"]) > POSITIONS]
    documents = long[:rows]
    run = model.run([document.text for document in documents], record="resid_post.*")
    ends = run.mask.sum(1)
    columns = ends[:, None] - 1 - torch.arange(POSITIONS)
    x = run["resid_post.*"][:, torch.arange(rows)[:, None], columns].permute(0, 2, 1, 3)
    names = [[set(labels.names()) for labels in token_labels(document, model.tokenizer)] for document in documents]
    at = [[names[row][int(columns[row, p])] for row in range(rows)] for p in range(POSITIONS)]
    counts = {}
    for here in at:
        for name in set().union(*here):
            share = sum(name in one for one in here) / rows
            counts.setdefault(name, []).append(min(share, 1 - share) if 0.02 < share < 0.98 else -1)
    usable = [name for name, shares in counts.items() if len(shares) == POSITIONS and min(shares) > 0]
    usable = sorted(usable, key=lambda name: -min(counts[name]))[:LABELS]
    y = torch.tensor([[[float(name in one) for name in usable] for one in here] for here in at])
    return x.contiguous(), y


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--C", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()

    torch.set_num_threads(1)
    x, y = activations(chosen.rows, chosen.seed)
    layers, positions, rows, d = x.shape
    problems = list(np.ndindex(layers, positions, y.shape[-1]))
    part = problems[:: EVERY + 1]
    peers: dict[tuple[int, ...], LogisticRegression] = {}
    flat = x.double().numpy()

    def ours() -> None:
        ours.probe = Logistic(C=chosen.C, tolerance=1e-5).fit(x, y.expand(layers, -1, -1, -1)).probe_

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for layer, pos, label in part:
                fit = LogisticRegression(C=chosen.C, max_iter=1000)
                peers[layer, pos, label] = fit.fit(flat[layer, pos], y[pos, :, label].numpy())

    timings = take_turns({"patchclamp, all": ours, f"scikit-learn, {len(part)} of them": theirs}, rounds=chosen.rounds)
    scale = len(problems) / len(part)
    ratio = timings.ratio([f"scikit-learn, {len(part)} of them"], ["patchclamp, all"], cpu=True)
    excess, agree = [], []
    for (layer, pos, label), peer in peers.items():
        probe = ours.probe[layer, pos, label]
        labels, weights = y[pos, :, label][None, :, None].double(), torch.full((1, rows, 1), chosen.C).double()
        pairs = [(probe.weight, probe.bias), (torch.tensor(peer.coef_[0]), torch.tensor(peer.intercept_[0]))]
        here = x[layer, pos][None].double()
        values = [float(objective(here, labels, weights, w[None, None], b[None, None])) for w, b in pairs]
        excess.append(values[0] / values[1] - 1)
        agree.append(float(((probe.decision(x[layer, pos]) > 0).numpy() == peer.predict(flat[layer, pos])).mean()))
    speed, low, high = (scale * value for value in (ratio.median, *ratio.interval))
    claims = [
        Claim(f"{len(problems)} probes are at least 20 times as fast", speed, (low, high), 20.0, speed >= 20),
        Claim("objective above scikit-learn's, as a share of it", max(excess), None, 1e-4, max(excess) <= 1e-4),
        Claim("share of rows decided alike", float(np.mean(agree)), None, 0.999, float(np.mean(agree)) >= 0.999),
    ]
    return report(
        "probes",
        threads=1,
        setting={"layers": layers, "positions": positions, "labels": y.shape[-1], "rows": rows, "d": d, "C": chosen.C},
        timings=timings,
        claims=claims,
        measured={"lowest_excess": min(excess)},
        path=chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
