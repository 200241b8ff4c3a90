"""Finetuning a dictionary on what the model makes of it: KL of the output, and the error of later layers.

    found = end_to_end(sae, model, "resid_post.2", tokens)                          # token ids [prompt, pos], or texts
    found = end_to_end(transcoder, model, ("mlp_in.2", "mlp_out.2"), tokens, downstream=1.0)
    found.dictionary, found.before, found.after                                     # Fidelity on prompts held out

The dictionary stands in the model's place at its site, and learns by gradients through the layers above:
loss = KL(model | spliced) + downstream * mean over later layers of |r - r'|^2 / |r - mean|^2 + local * FVU at the site
+ l1 * sum of the values (Braun et al. 2024, arXiv:2405.12241: e2e, and e2e with downstream reconstruction).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patchclamp import interventions
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.replace import Fidelity, fidelity, kl, replaced
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.views import track

LEARNT = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")


@dataclass(frozen=True, eq=False)
class EndToEnd:
    """The finetuned dictionary, with what the model keeps with it spliced in: before, and after, on the same prompts.

    `losses` has one row a step: `loss`, `kl`, `downstream`, `local`, `l0`.
    """

    dictionary: Dictionary
    before: Fidelity
    after: Fidelity
    losses: list[dict[str, float]] = field(repr=False)


def spliced(dictionary: Dictionary, site: str | tuple[str, str]) -> list[Intervention]:
    """The interventions that put a dictionary's output where it belongs: an SAE at its site, a transcoder at (in, out).

    Gradients pass. ValueError for a pair of sites that are not of one layer.
    """
    if isinstance(site, str):
        return [interventions.edit(site, lambda x: dictionary(x.to(dictionary.W_enc.dtype)).to(x.dtype))]
    reads, _, layer = site[0].rpartition(".")
    writes, _, other = site[1].rpartition(".")
    if layer != other or not layer.isdecimal():
        raise ValueError(f"site={site}: a transcoder reads and explains one layer, as ('mlp_in.2', 'mlp_out.2')")
    return replaced({int(layer): dictionary}, reads=reads, writes=writes)


def end_to_end(
    dictionary: Dictionary,
    model: Model,
    site: str | tuple[str, str],
    prompts: Any,
    *,
    steps: int = 200,
    batch: int = 16,
    learning_rate: float = 3e-4,
    downstream: float = 0.0,
    local: float = 0.0,
    l1: float = 0.0,
    held_out: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> EndToEnd:
    """A finetuned copy of the dictionary, whose decoder rows keep their norms; the model's weights stay as they are.

    `prompts` are token ids [prompt, pos], or texts; a share `held_out` of them, drawn by `seed`, measures `before` and
    `after` and trains nothing. Thresholds of a JumpReLU have no gradient here and stay.
    """
    tokens = model.tokens(prompts)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(tokens), generator=generator)
    kept = max(1, round(held_out * len(tokens)))
    if len(order) <= kept or steps < 1:
        raise ValueError(
            f"{len(tokens)} prompts, of which {kept} are held out, and steps={steps}: nothing to learn from"
        )
    test, train = order[:kept], order[kept:]
    examined = [row[mask].tolist() for row, mask in zip(tokens.ids[test], tokens.mask[test], strict=True)]
    place = site if isinstance(site, str) else site[1]
    later = _later(model, place) if downstream else []
    learnt = copy.deepcopy(dictionary)
    weights = [learnt.get_buffer(name) for name in LEARNT if getattr(learnt, name) is not None]
    for weight in weights:
        weight.requires_grad_()
    norms = learnt.W_dec.detach().norm(dim=1, keepdim=True)
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    before = fidelity(model, examined, spliced(dictionary, site), ablated=[place])
    losses: list[dict[str, float]] = []
    frozen = [(p, p.requires_grad) for p in model.hf.parameters()]
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        rows = _rows(train, batch, generator)
        for step in track(range(steps), "end to end") if progress else range(steps):
            chosen = next(rows)
            ids, mask = tokens.ids[chosen], tokens.mask[chosen]
            short = int(mask.sum(1).max())
            terms = _terms(model, learnt, site, ids[:, :short], mask[:, :short], later)
            loss = terms["kl"] + downstream * terms["downstream"] + local * terms["local"] + l1 * terms["l1"]
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, (steps - step) / (0.2 * steps), (step + 1) / (0.05 * steps))
            optimizer.step()
            with torch.no_grad():
                learnt.W_dec *= norms / learnt.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
            losses.append({name: float(value.detach()) for name, value in {"loss": loss, **terms}.items()})
    finally:
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None
    after = fidelity(model, examined, spliced(learnt, site), ablated=[place])
    return EndToEnd(learnt, before, after, losses)


def _terms(
    model: Model, dictionary: Dictionary, site: str | tuple[str, str], ids: Tensor, mask: Tensor, later: list[str]
) -> dict[str, Tensor]:
    """The parts of the loss on one batch; means over its tokens."""
    place, source = (site, site) if isinstance(site, str) else (site[1], site[0])
    clean = model.run(ids, attention_mask=mask, record=list(dict.fromkeys([source, place, *later])))
    real = mask.to(model.device)
    # The model's own forward under the interventions: `run` would take no gradients to what they are made of.
    with model.under(do=spliced(dictionary, site), record=[place, *later]) as run:
        output = model.hf(input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device))
    assert clean.logits is not None
    reference, changed = (logits.float().log_softmax(-1)[real] for logits in (clean.logits, output.logits))
    zero = changed.new_zeros(())
    gaps = [_unexplained(clean[name][real], run[name][real]) for name in later]
    x = clean[source][real].to(dictionary.W_enc.dtype)
    codes = dictionary.encode(x)
    explained = dictionary.decode(codes, x)
    return {
        "kl": kl(reference, changed).mean(),
        "downstream": torch.stack(gaps).mean() if gaps else zero,
        "local": _unexplained(clean[place][real], explained),
        "l1": codes.values.abs().sum(-1).mean(),
        "l0": codes.l0().mean(),
    }


def _unexplained(x: Tensor, explained: Tensor) -> Tensor:
    x, explained = x.flatten(1).float(), explained.flatten(1).float()
    return ((x - explained) ** 2).sum() / ((x - x.mean(0)) ** 2).sum().clamp_min(1e-12)


def _later(model: Model, place: str) -> list[str]:
    """The residual stream behind each layer above the site."""
    layer = model.sites(place)[0].layer
    if layer is None:
        raise ValueError(f"downstream: which layers stand behind {place} is not known")
    found = [f"resid_post.{above}" for above in range(layer + (place.startswith("resid_post")), model.n_layers)]
    if not found:
        raise ValueError(f"downstream: no layer of {model.name} stands behind {place}")
    return found


def _rows(train: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of the prompts, epoch after epoch."""
    while True:
        yield from train[torch.randperm(len(train), generator=generator)].split(batch)
