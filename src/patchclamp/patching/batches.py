"""Which patches share a forward pass: as few passes as pay for the columns that are then computed for nothing.

for batch in batches(restart, patches, memory=1.0): ...
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from patchclamp.patching.restart import Restart
from patchclamp.sites import Site

_CALL = 4e8
"""What a forward pass costs in Python calls, in multiply-adds (some 6 ms of one thread)."""


@dataclass(frozen=True)
class Patch:
    """One entry of a sweep: a site, the columns that are patched (None: all), and the first that can differ."""

    site: Site
    columns: Tensor | None  # [prompt, n], -1 where a prompt has fewer
    cell: tuple[int, ...]
    first: int


def begins(site: Site) -> tuple[int, Site | None]:
    """The block that a patch of this site restarts from, and the site that is written (None: the block's input)."""
    if site.kind == "resid_pre":
        return site.layer or 0, None
    if site.kind == "resid_post":
        return (site.layer or 0) + 1, None
    if site.layer is None:
        return 0, site.whole
    return site.layer, site.whole


def batches(restart: Restart, patches: Sequence[Patch], memory: float) -> list[list[Patch]]:
    """Patches of one block and site, near in position, within `memory` GiB."""
    by_start: dict[tuple, list[Patch]] = {}
    for item in patches:
        by_start.setdefault(begins(item.site), []).append(item)
    found = []
    for (layer, _), items in by_start.items():
        items = sorted(items, key=lambda item: item.first)
        alike = [list(group) for _, group in groupby(items, key=lambda item: item.first if restart.cacheable else 0)]
        width = [restart.end - (group[0].first if restart.cacheable else 0) for group in alike]
        most = max(1, int(memory * 2**30 / (len(restart.ids) * _bytes_a_row(restart, width[0]))))
        for start, stop in _cuts([len(group) for group in alike], width, _column_cost(restart, layer), most):
            together = [item for group in alike[start:stop] for item in group]
            found += [together[i : i + most] for i in range(0, len(together), most)]
    return found


def _cuts(counts: list[int], width: list[int], column: float, most: int) -> list[tuple[int, int]]:
    """The cheapest partition of groups in order, where a batch computes all its patches at the width of its first."""
    best = [0.0] + [float("inf")] * len(counts)
    origin = [0] * (len(counts) + 1)
    for start in range(len(counts)):
        size = needed = 0
        for stop in range(start + 1, len(counts) + 1):
            size += counts[stop - 1]
            needed += counts[stop - 1] * width[stop - 1]
            idle = (size * width[start] - needed) * column
            cost = best[start] + size * width[start] * column + _CALL * -(-size // most)
            if cost < best[stop]:
                best[stop], origin[stop] = cost, start
            if idle > _CALL * (stop - start):
                break  # it grows faster than the calls that are spared
    found, stop = [], len(counts)
    while stop:
        found.append((origin[stop], stop))
        stop = origin[stop]
    return found[::-1]


def _column_cost(restart: Restart, layer: int) -> float:
    """Multiply-adds of one position of all prompts, from block `layer` on."""
    blocks = [restart.model.hf.get_submodule(above.path) for above in restart.layers[layer:]]
    return len(restart.ids) * float(sum(p.numel() for block in blocks for p in block.parameters()))


def _bytes_a_row(restart: Restart, columns: int) -> int:
    """A generous estimate of one prompt's activations in one block, and its logits."""
    model = restart.model
    width = max(
        (model.weights.W_in[0].shape[-1] if restart.layers and restart.layers[0].up else 4 * model.d_model),
        model.d_model,
    )
    size = model.dtype.itemsize
    return size * (columns * (8 * model.d_model + 3 * width + model.n_heads * restart.end) + 3 * restart.vocab)
