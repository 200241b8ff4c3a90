"""The forward passes of one unit: many sites at once, stopped after the last, rows put where the shard has them.

    harvest(model, unit, sites, seed=0, batch_tokens=8192)      # {"resid_post.3": Float[row, d], ...}

What comes out follows from the unit, the seed and `batch_tokens` alone, to the bit: a unit that is done again is the
same. Windows of like length share a batch, up to `batch_tokens` tokens with the padding.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.inputs import pad_rows
from patchclamp.model import Model
from patchclamp.sites import Site, SiteError
from patchclamp.store.units import Unit
from patchclamp.tape import keep


@dataclass(frozen=True)
class Width:
    """What a site gives for each token: its shape there, the numbers in it, and the model's dtype."""

    shape: tuple[int, ...]
    d: int
    dtype: str


def sites_of(model: Model, sites: "str | Site | Sequence[str | Site]") -> list[Site]:
    """The sites that the patterns name, each once, in the order given."""
    found = model.sites(sites)
    if not found:
        raise ValueError("record needs sites, such as 'resid_post.*'")
    for site in found:
        if site.kind.endswith(("scores", "pattern")):
            raise SiteError(f"{site} has a row for each query and key, not for each token: a store cannot hold it")
    return found


def widths(model: Model, sites: Sequence[Site], token: int) -> dict[str, Width]:
    """The width of each site, from a forward pass over two tokens; SiteError where it has no row for each token."""
    ids = torch.full((1, 2), token)
    run = model.run(ids, record=keep(tuple(sites)), stop=True)
    found = {}
    for site in sites:
        x = _by_token(run[site], site, ids)
        shape = tuple(x.shape[2:])
        found[str(site)] = Width(shape, x[0, 0].numel(), str(x.dtype).removeprefix("torch."))
    return found


def context_of(model: Model, asked: int | None) -> int:
    """Tokens in a window: as asked for, or what the model takes, at most 1,024; ValueError beyond what it takes."""
    config = getattr(model.hf, "config", None)
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    most = next((n for name in names if isinstance(n := getattr(config, name, None), int) and n > 0), None)
    if asked is None:
        return min(1024, most or 1024)
    if most is not None and asked > most:
        raise ValueError(f"context={asked}, and {model.name} takes at most {most} tokens")
    return asked


def harvest(
    model: Model, unit: Unit, sites: Sequence[Site], *, seed: int, batch_tokens: int
) -> dict[str, Float[Tensor, "row d"]]:
    """The rows of a unit at every site, in the order of its shard and in the model's dtype, on the CPU."""
    place = torch.empty(unit.rows, dtype=torch.long)
    place[unit.order(seed)] = torch.arange(unit.rows)
    gives = (unit.lengths - unit.skip_first).cumsum(0)
    first = gives - (unit.lengths - unit.skip_first)  # the first row that each window gives
    out: dict[str, Tensor] = {}
    for windows in _batches(unit, batch_tokens, padded=_takes_mask(model)):
        rows = [unit.token[unit.start[w] : unit.start[w + 1]].tolist() for w in windows.tolist()]
        tokens = pad_rows(rows, model.pad)
        run = model.run(tokens, record=keep(tuple(sites)), stop=True)
        kept = tokens.mask.clone()
        kept[:, : unit.skip_first] = False
        at, position = kept.nonzero(as_tuple=True)
        row = first[windows][at] + position - unit.skip_first
        inside = row < unit.rows  # the last window of all may give more than was asked for
        at, position, target = at[inside], position[inside], place[row[inside]]
        for site in sites:
            x = _by_token(run[site], site, tokens.ids)
            chosen = x[at.to(x.device), position.to(x.device)].flatten(1).cpu()
            if str(site) not in out:
                out[str(site)] = chosen.new_empty(unit.rows, chosen.shape[1])
            out[str(site)][target] = chosen
    return out


def _batches(unit: Unit, batch_tokens: int, *, padded: bool) -> Iterator[Int[Tensor, "window"]]:
    """Windows that go through the model together, the longest first; of one length where nothing may be padded."""
    lengths = unit.lengths
    begin = 0
    order = lengths.argsort(descending=True, stable=True)
    while begin < len(order):
        longest = int(lengths[order[begin]])
        end = begin + max(1, batch_tokens // longest)
        batch = order[begin:end]
        if not padded:
            batch = batch[lengths[batch] == longest]
        yield batch
        begin += len(batch)


def _takes_mask(model: Model) -> bool:
    return "attention_mask" in inspect.signature(model.hf.forward).parameters


def _by_token(x: Tensor, site: Site, ids: Tensor) -> Float[Tensor, "prompt pos *rest"]:
    if not isinstance(x, Tensor) or x.shape[:2] != ids.shape or not x.is_floating_point():
        shape = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise SiteError(f"{site} gives {shape} for tokens {list(ids.shape)}: a store needs numbers for each token")
    return x if x.ndim > 2 else x[:, :, None]
