"""Commands about activations on disk: record them, learn a dictionary from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from patchclamp.cli.arguments import ModelName, Seed


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
