"""A model whose MLPs are replaced by transcoders while it runs: `model.run(prompt, do=replaced(transcoders))`.

    do = replaced({2: transcoder})                           # layer 2's MLP says what the transcoder explains of it
    do = replaced(crosslayer, error="keep")                  # and what it does not explain: the same logits
    do = replaced({2: transcoder}, error="keep", change=without([(2, 17), (2, 40)]))
    fidelity(model, prompts, do)                             # cross-entropy and KL, recovered from mean ablation

`transcoders` are {layer: Dictionary} (with or without skip), or a `CrossLayerTranscoder`. `change` is told a layer and
its codes and gives other ones. With errors kept, only what changes in the codes changes in the outputs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import interventions
from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.crosslayer import CrossLayerTranscoder
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.interventions import Intervention
from patchclamp.model import Model

Transcoders = Mapping[int, Dictionary] | CrossLayerTranscoder
Change = Callable[[int, Codes], Codes]


def replaced(
    transcoders: Transcoders,
    *,
    error: Literal["drop", "keep"] = "drop",
    change: Change | None = None,
    reads: str = "mlp_in",
    writes: str = "mlp_out",
) -> list[Intervention]:
    """The interventions that put transcoders in the place of the sites `writes`, given the sites `reads`.

    "drop" leaves the transcoders' output alone; "keep" adds to each site only what `change` did to the codes, so that
    without it nothing changes. A cross-layer transcoder replaces all its layers.
    """
    if error not in ("drop", "keep"):
        raise ValueError(f"error={error!r}: errors are dropped ('drop') or kept ('keep')")
    if isinstance(transcoders, CrossLayerTranscoder):
        return _across(transcoders, error == "keep", change, reads, writes)
    found = []
    for layer, transcoder in sorted(transcoders.items()):
        if len(transcoder.shape_in) > 1 or len(transcoder.shape_out) > 1:
            raise ValueError(f"layer {layer}: a transcoder reads one site and explains one: {transcoder.extra_repr()}")
        found += _within(layer, transcoder, error == "keep", change, reads, writes)
    return found


def _within(
    layer: int, transcoder: Dictionary, keep: bool, change: Change | None, reads: str, writes: str
) -> list[Intervention]:
    """Two edits of one layer: the first sees what the MLP reads, the second changes what it writes."""
    seen: list[Tensor] = []

    def read(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    def write(y: Tensor) -> Tensor:
        x = seen.pop().to(transcoder.W_enc.dtype)
        codes = transcoder.encode(x)
        told = codes if change is None else change(layer, codes)
        if keep:
            return y if change is None else y + _moved(transcoder, codes, told).to(y.dtype)
        return transcoder.decode(told, x).to(y.dtype)

    return [interventions.edit(f"{reads}.{layer}", read), interventions.edit(f"{writes}.{layer}", write)]


def _moved(transcoder: Dictionary, codes: Codes, told: Codes) -> Tensor:
    """What the output changes by: biases and skip fall out of the difference."""
    zero = torch.zeros((*codes.indices.shape[:-1], transcoder.d_in), dtype=codes.values.dtype)
    return transcoder.decode(told, zero) - transcoder.decode(codes, zero)


def _across(
    transcoder: CrossLayerTranscoder, keep: bool, change: Change | None, reads: str, writes: str
) -> list[Intervention]:
    codes: list[Codes] = []  # of each layer so far: as they are, and as they are told
    told: list[Codes] = []
    inputs: list[Tensor] = []

    def read(layer: int, x: Tensor) -> Tensor:
        del codes[layer:], told[layer:], inputs[layer:]
        inputs.append(x.to(transcoder.W_enc.dtype))
        codes.append(transcoder.encode_layer(layer, inputs[-1]))
        told.append(codes[-1] if change is None else change(layer, codes[-1]))
        return x

    def write(layer: int, y: Tensor) -> Tensor:
        if keep:
            if change is None:
                return y
            difference = transcoder.written(layer, told) - transcoder.written(layer, codes)
            return y + difference.to(y.dtype)
        return transcoder.decode_layer(layer, told, inputs[layer]).to(y.dtype)

    found = []
    for layer in range(transcoder.layers):
        found.append(interventions.edit(f"{reads}.{layer}", lambda x, layer=layer: read(layer, x)))
        found.append(interventions.edit(f"{writes}.{layer}", lambda y, layer=layer: write(layer, y)))
    return found


def without(latents: Iterable[tuple[int, int]], pos: Iterable[int] | None = None) -> Change:
    """A change in which these (layer, latent) say nothing, at positions `pos` or at all."""
    by_layer: dict[int, list[int]] = {}
    for layer, latent in latents:
        by_layer.setdefault(layer, []).append(latent)
    places = None if pos is None else list(pos)

    def change(layer: int, codes: Codes) -> Codes:
        if layer not in by_layer:
            return codes
        off = torch.isin(codes.indices, torch.tensor(by_layer[layer]))
        if places is not None:
            there = torch.zeros(codes.indices.shape[1], dtype=torch.bool)
            there[places] = True
            off &= there[:, None]
        return Codes(codes.indices, codes.values.masked_fill(off, 0.0), codes.width)

    return change


@dataclass(frozen=True)
class Fidelity:
    """How much of a model's behaviour is left under interventions, beside what mean ablation of the same sites leaves.

    Cross-entropy of the next token and KL from the model as it is, means over tokens, in nats.
    """

    ce: float
    ce_changed: float
    ce_ablated: float
    kl_changed: float
    kl_ablated: float

    @property
    def ce_recovered(self) -> float:
        """1: as good as the model; 0: as bad as with the sites at their mean."""
        return (self.ce_ablated - self.ce_changed) / (self.ce_ablated - self.ce)

    @property
    def kl_recovered(self) -> float:
        """1: the model's own output; 0: as far from it as with the sites at their mean."""
        return 1 - self.kl_changed / self.kl_ablated


@torch.no_grad()
def fidelity(
    model: Model, prompts: Any, do: Sequence[Intervention], *, ablated: Sequence[str] | None = None, batch: int = 64
) -> Fidelity:
    """What the interventions cost on these prompts (token ids [prompt, pos], or texts).

    `ablated` are the sites put to their mean over all tokens for comparison; those that `do` writes to by default.
    """
    tokens = model.tokens(prompts)
    if ablated is None:
        ablated = [item.site for item in do if not item.site.startswith(("mlp_in", "attn_in"))]
    sites = list(dict.fromkeys(ablated))
    parts = [(tokens.ids[i : i + batch], tokens.mask[i : i + batch]) for i in range(0, len(tokens), batch)]
    sums, count = {site: torch.zeros(()) for site in sites}, 0
    for ids, mask in parts:
        run = model.run(ids, attention_mask=mask, record=sites, stop=True)
        for site in sites:
            sums[site] = sums[site] + run[site][mask.to(run[site].device)].double().sum(0)
        count += int(mask.sum())
    means = [interventions.ablate(site, to=(sums[site] / count).to(model.dtype)) for site in sites]
    totals, words = torch.zeros(5, dtype=torch.double), [0, 0]
    for ids, mask in parts:
        reference, changed, gone = (
            _log_probabilities(model, ids, mask, which) for which in ((), tuple(do), tuple(means))
        )
        real = mask.to(reference.device)
        ahead = real[:, 1:] & real[:, :-1]
        targets = ids.to(reference.device)[:, 1:, None]
        for place, logp in enumerate((reference, changed, gone)):
            totals[place] -= logp[:, :-1].gather(-1, targets).squeeze(-1)[ahead].double().sum().cpu()
        for place, logp in ((3, changed), (4, gone)):
            totals[place] += kl(reference, logp)[real].double().sum().cpu()
        words = [words[0] + int(ahead.sum()), words[1] + int(real.sum())]
    ce, kls = (totals[:3] / words[0]).tolist(), (totals[3:] / words[1]).tolist()
    return Fidelity(*ce, *kls)


def kl(reference: Float[Tensor, "*row vocab"], other: Float[Tensor, "*row vocab"]) -> Float[Tensor, "*row"]:
    """KL(reference | other) of log-probabilities, in nats."""
    return (reference.exp() * (reference - other)).sum(-1)


def _log_probabilities(model: Model, ids: Tensor, mask: Tensor, do: Sequence[Intervention]) -> Tensor:
    logits = model.run(ids, attention_mask=mask, do=do).logits
    if logits is None:
        raise TypeError(f"{model.name} returns no logits")
    return logits.float().log_softmax(-1)
