"""How much of a model's behaviour survives when a dictionary's explanation stands in for the activation.

    kept = recovered(model, dictionary, "resid_post.2", texts)
    kept.loss["zero"], kept.kl["zero"]           # 1: nothing is lost; 0: as bad as zeros there; also "mean"

    loss recovered = (CE_ablated - CE_spliced) / (CE_ablated - CE_clean)      KL recovered = 1 - KL_spliced / KL_ablated

(Karvonen et al. 2025, arXiv:2503.09532, after Bricken et al. 2023.) Everything is put in at the same
positions: the real tokens after the first. Cross-entropy and KL are means over the predictions made at those
positions, each token counting once, however texts are batched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries import Dictionary
from patchclamp.interventions import Intervention, patch
from patchclamp.model import Model
from patchclamp.views import track

ABLATIONS = ("zero", "mean")


@dataclass(frozen=True, eq=False)
class Recovered:
    """Sums over the predictions of each prompt, in nats; `predictions` says how many there are.

    `cross_entropy` has "clean", "spliced", "zero" and "mean"; `divergence` (KL from the clean model) the last three.
    """

    cross_entropy: Mapping[str, Float[Tensor, " prompt"]]
    divergence: Mapping[str, Float[Tensor, " prompt"]]
    predictions: Float[Tensor, " prompt"]

    @property
    def loss(self) -> dict[str, float]:
        """Share of the loss recovered, by ablation; NaN where the ablation does no harm."""
        return {to: _share(*self._sums("loss", to, None)) for to in ABLATIONS}

    @property
    def kl(self) -> dict[str, float]:
        """Share of the KL divergence recovered, by ablation."""
        return {to: _share(*self._sums("kl", to, None)) for to in ABLATIONS}

    @property
    def per_token(self) -> dict[str, float]:
        """Mean cross-entropies and divergences a token, in nats, by name."""
        total = float(self.predictions.sum())
        means = {f"CE {name}": float(values.sum()) / total for name, values in self.cross_entropy.items()}
        return means | {f"KL {name}": float(values.sum()) / total for name, values in self.divergence.items()}

    def interval(self, what: str, to: str, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """The 95 % bootstrap interval over prompts of `loss` or `kl`, the ratio of sums."""
        picks = np.random.default_rng(seed).integers(len(self.predictions), size=(resamples, len(self.predictions)))
        ratios = [_share(*self._sums(what, to, torch.as_tensor(pick))) for pick in picks]
        low, high = np.nanquantile(ratios, [0.025, 0.975]) if np.isfinite(ratios).any() else (np.nan, np.nan)
        return float(low), float(high)

    def _sums(self, what: str, to: str, pick: Tensor | None) -> tuple[float, float, float]:
        """What it is without the site's activation, with the dictionary's, and untouched."""
        table = {"loss": self.cross_entropy, "kl": self.divergence}[what]
        values = [table[to], table["spliced"], table.get("clean", torch.zeros_like(self.predictions))]
        without, spliced, clean = (float((v if pick is None else v[pick]).sum()) for v in values)
        return without, spliced, clean


def _share(without: float, spliced: float, clean: float) -> float:
    return (without - spliced) / (without - clean) if without > clean else float("nan")


@torch.no_grad()
def recovered(
    model: Model,
    dictionary: Dictionary,
    site: str | tuple[str, str],
    inputs: Any,
    *,
    skip_first: int = 1,
    batch: int = 64,
) -> Recovered:
    """Run `inputs` (texts or token ids) as they are, with the dictionary, with zeros and with the mean at `site`.

    `site` is a pair (read, written) for a transcoder. The first `skip_first` positions of each prompt stay as they are
    in every run: what stands there (a beginning-of-sequence token) has activations of its own kind. ValueError where no
    prompt has a prediction after them.
    """
    read, written = (site, site) if isinstance(site, str) else site
    tokens = model.tokens(inputs)
    parts = [slice(first, first + batch) for first in range(0, len(tokens.ids), batch)]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for part in parts:
        run = model.run(tokens.ids[part], attention_mask=tokens.mask[part], record=written, stop=True)
        chosen = run[written][_places(tokens.mask[part], skip_first).to(model.device)]
        total, count = total + chosen.double().sum(0).cpu(), count + len(chosen)
    if not count:
        raise ValueError(f"no prompt has a token after its first {skip_first}")
    mean = total / count
    entropies: dict[str, list[Tensor]] = {name: [] for name in ("clean", "spliced", *ABLATIONS)}
    divergences: dict[str, list[Tensor]] = {name: [] for name in ("spliced", *ABLATIONS)}
    predictions = []
    for part in track(parts, "loss recovered"):
        ids, mask = tokens.ids[part], tokens.mask[part]
        where = _places(mask, skip_first).to(model.device)
        clean = model.run(ids, attention_mask=mask, record=list(dict.fromkeys((read, written))))
        own = clean[written]
        instead = {
            "spliced": dictionary(clean[read].to(dictionary.W_dec)).to(own),
            "zero": torch.zeros_like(own),
            "mean": mean.to(own).expand(own.shape),
        }
        asked = where[:, :-1] & mask[:, 1:].to(where)
        reference = _log_probabilities(clean.logits)
        entropies["clean"].append(_entropy(reference, ids, asked))
        predictions.append(asked.sum(1).double().cpu())
        for name, values in instead.items():
            put: Sequence[Intervention] = [patch(written, torch.where(where[..., None], values, own))]
            logits = _log_probabilities(model.run(ids, attention_mask=mask, do=put).logits)
            entropies[name].append(_entropy(logits, ids, asked))
            each = (reference.exp() * (reference - logits)).sum(-1)
            divergences[name].append(torch.where(asked, each, 0.0).sum(1).cpu())
    if not float(torch.cat(predictions).sum()):
        raise ValueError(f"no prompt has a token to predict after its first {skip_first}")
    return Recovered(
        {name: torch.cat(values) for name, values in entropies.items()},
        {name: torch.cat(values) for name, values in divergences.items()},
        torch.cat(predictions),
    )


def _places(mask: Tensor, skip_first: int) -> Tensor:
    """The real tokens after the first of each prompt, whichever side the padding is on."""
    return mask.bool() & (mask.long().cumsum(1) > skip_first)


def _log_probabilities(logits: Tensor | None) -> Tensor:
    """Of each position's next token, in double precision: sums of small divergences."""
    if logits is None:
        raise ValueError("this model returns no logits: what it predicts cannot be compared")
    return logits[:, :-1].double().log_softmax(-1)


def _entropy(log_probabilities: Tensor, ids: Tensor, asked: Tensor) -> Tensor:
    target = ids[:, 1:].to(log_probabilities.device)
    each = -log_probabilities.gather(-1, target[..., None]).squeeze(-1)
    return torch.where(asked, each, 0.0).sum(1).cpu()
