"""One whole optimiser step of a sparse dictionary, against SAELens, sparsify and the encoder's matrix product alone.

    bench/.venv-dictionaries/bin/python bench/dictionary_step.py --json bench/results/dictionary_step.json

d = 768, width 12,288, k = 32, batch 2,048, float32, in turns within each round. A step is all of it: forward, loss,
gradients, the optimiser, the decoder's norm, the counting of dead latents, in the peers' own code and with their
defaults. Ends with status 1 if a claim fails.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import torch
from protocol import Claim, Timings, report, take_turns

D, WIDTH, K, BATCH = 768, 12_288, 32, 2_048
PRODUCT = "encoder product"


def ours(batch: torch.Tensor, name: str) -> Callable[[], object]:
    from patchclamp import dictionaries

    trainer = dictionaries.Trainer(getattr(dictionaries, name)(k=K), d_in=D, width=WIDTH)
    return lambda: trainer.step(batch)


def saelens(batch: torch.Tensor, name: str) -> Callable[[], object]:
    """SAELens's own trainer, one step of it: the loop around it does nothing else on a step without logging."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        LoggingConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    network, config = {
        "TopK": (TopKTrainingSAE, TopKTrainingSAEConfig),
        "BatchTopK": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    }[name]
    sae = network(config(d_in=D, d_sae=WIDTH, k=K, dtype="float32", device="cpu"))
    settings = SAETrainerConfig(
        total_training_samples=10**8,
        train_batch_size_samples=BATCH,
        lr_end=3e-5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(settings, sae, data_provider=iter(()))
    return lambda: trainer._train_step(sae, batch)


def sparsify(batch: torch.Tensor) -> Callable[[], object]:
    """sparsify's sparse coder, in the order of its training loop, with Adam."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder(D, SparseCoderConfig(num_latents=WIDTH, k=K), device="cpu", dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), lr=2e-4)
    fired = torch.zeros(WIDTH, dtype=torch.bool)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(batch, batch)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def product(batch: torch.Tensor) -> Callable[[], object]:
    weight, bias = torch.randn(WIDTH, D) / D**0.5, torch.zeros(WIDTH)
    out = torch.empty(BATCH, WIDTH)
    return lambda: torch.addmm(bias, batch, weight.t(), out=out)


def claims(timings: Timings) -> list[Claim]:
    made = []
    for text, slow, fast, threshold, at_least in (
        ("TopK is at least 4 times as fast as SAELens TopK", "SAELens TopK", "TopK", 4.0, True),
        ("TopK is at least 1.3 times as fast as sparsify", "sparsify TopK", "TopK", 1.3, True),
        ("TopK takes at most 1.5 times the encoder's product", "TopK", PRODUCT, 1.5, False),
        ("BatchTopK is at least 5 times as fast as SAELens BatchTopK", "SAELens BatchTopK", "BatchTopK", 5.0, True),
    ):
        ratio = timings.ratio([slow], [fast])
        holds = ratio.median >= threshold if at_least else ratio.median <= threshold
        made.append(Claim(text, ratio.median, ratio.interval, threshold, holds))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)  # the peers draw their weights from the global generator
    batch = torch.randn(BATCH, D, generator=torch.Generator().manual_seed(chosen.seed))
    sides = {
        PRODUCT: product(batch),
        "TopK": ours(batch, "TopK"),
        "BatchTopK": ours(batch, "BatchTopK"),
        "sparsify TopK": sparsify(batch),
        "SAELens TopK": saelens(batch, "TopK"),
        "SAELens BatchTopK": saelens(batch, "BatchTopK"),
    }
    timings = take_turns(sides, rounds=chosen.rounds, warmup=2)
    return report(
        "dictionary_step",
        threads=chosen.threads,
        setting={"d": D, "width": WIDTH, "k": K, "batch": BATCH, "seed": chosen.seed, "rounds": chosen.rounds},
        timings=timings,
        claims=claims(timings),
        measured={},
        path=chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
