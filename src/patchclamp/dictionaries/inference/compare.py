"""A dictionary's own encoder beside inference on its decoder, and beside inference on random directions."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries import measures
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.inference.flops import flops
from patchclamp.dictionaries.inference.infer import solve


def compare(
    dictionary: Dictionary,
    x: Float[Tensor, "row d"],
    k: int,
    methods: Sequence[str] = ("gradient-pursuit", "omp"),
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row a method, at most `k` latents each: `fvu`, `l0`, `flops` and `seconds` of one row of x.

    First the encoder, of whose codes the k largest are kept; last the best method on `measures.random_dictionary`, the
    floor: greedy inference explains much with any directions.
    """
    rows = [_row(dictionary, x, "encoder", None, k), *(_row(dictionary, x, method, method, k) for method in methods)]
    best = min(rows[1:], key=lambda row: row["fvu"])["method"]
    floor = measures.random_dictionary(dictionary, seed)
    return [*rows, _row(floor, x, f"{best}, random dictionary", best, k)]


def _row(dictionary: Dictionary, x: Tensor, name: str, method: str | None, k: int) -> dict[str, Any]:
    begin = time.perf_counter()
    codes = dictionary.encode(x) if method is None else solve(dictionary, x, method, k=k).codes
    if codes.values.shape[-1] > k:
        kept = codes.values.abs().topk(k, dim=-1).indices
        codes = type(codes)(codes.indices.gather(-1, kept), codes.values.gather(-1, kept), codes.width)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        explained = dictionary.decode(codes)
    cost = (
        flops("encoder", d=dictionary.d_in, width=dictionary.width)
        if method is None
        else flops(method, d=dictionary.d_out, width=dictionary.width, k=k)
    )
    return {
        "method": name,
        "fvu": measures.fvu(x, explained),
        "l0": float(codes.l0().mean()),
        "flops": cost,
        "seconds": seconds / len(x),
    }
