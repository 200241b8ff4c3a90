"""Do a crosscoder's latents carry what tuning changed? Put into the base model's activation, run by the tuned model.

    found = transplant(base, tuned, crosscoder, "resid_post.2", prompts, scaling.specific())
    found.recovered, found.random_recovered          # of the way from the base's activation to the tuned model's output

The base model's activation h is changed by the chosen latents alone, h + sum_j f_j (d_j tuned - d_j base), and goes
through the tuned model's layers above the site: KL(tuned | that), beside no latents, all of them, and as many others
drawn at random among those active (Minder et al. 2025, arXiv:2504.02922, section 4.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp import interventions
from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.replace import kl
from patchclamp.model import Model


@dataclass(frozen=True, eq=False)
class Transplant:
    """KL(tuned | changed) at every position, in nats. `real` are the positions that count: tokens, and `where`.

    none      the base model's activation as it is
    chosen    with the chosen latents
    random    [draw, ...], with as many others
    all       with all latents
    """

    none: Float[Tensor, "prompt pos"]
    chosen: Float[Tensor, "prompt pos"]
    random: Float[Tensor, "draw prompt pos"]
    all: Float[Tensor, "prompt pos"]
    real: Bool[Tensor, "prompt pos"]

    def by_prompt(self, name: str) -> Float[Tensor, "*draw prompt"]:
        """Mean over the positions of each prompt."""
        values = getattr(self, name)
        return (values * self.real).sum(-1) / self.real.sum(-1)

    @property
    def recovered(self) -> float:
        """Share of the KL that the chosen latents take away: 0 none, 1 all. NaN where the models do not differ."""
        return self._share(self.chosen)

    @property
    def random_recovered(self) -> list[float]:
        """The same of each random draw."""
        return [self._share(values) for values in self.random]

    @property
    def all_recovered(self) -> float:
        """The same of all latents: what the crosscoder can carry."""
        return self._share(self.all)

    def _share(self, values: Tensor) -> float:
        none, left = (x[self.real].double().mean() for x in (self.none, values))
        return float(1 - left / none) if none != 0 else float("nan")


@torch.no_grad()
def transplant(
    base: Model,
    tuned: Model,
    crosscoder: Dictionary,
    site: str,
    prompts: Any,
    latents: Sequence[int] | Int[Tensor, " latent"],
    *,
    where: Bool[Tensor, "prompt pos"] | None = None,
    draws: int = 5,
    base_index: int = 0,
    tuned_index: int = 1,
    seed: int = 0,
) -> Transplant:
    """Patch the latents into the base model's activation at `site` at every position, and compare outputs.

    `where` says which positions count, such as the first nine of a reply; all tokens by default. Random latents are
    drawn among those active in these prompts, the chosen ones apart; ValueError where there are too few.
    """
    chosen = torch.as_tensor(latents, dtype=torch.long)
    tokens = tuned.tokens(prompts)
    mask = tokens.mask
    h = base.run(tokens.ids, record=site, stop=True, attention_mask=mask)[site]
    run = tuned.run(tokens.ids, record=site, attention_mask=mask)
    order = [h, run[site]] if base_index < tuned_index else [run[site], h]
    codes = crosscoder.encode(torch.stack(order, -2))
    rows = crosscoder.W_dec.unflatten(1, crosscoder.shape_out)
    difference = rows[:, tuned_index] - rows[:, base_index]
    assert run.logits is not None
    reference = run.logits.float().log_softmax(-1)
    real = tokens.mask if where is None else tokens.mask & where

    def measured(which: Tensor | None) -> Float[Tensor, "prompt pos"]:
        changed = h if which is None else h + _sum(codes, which, difference).to(h.dtype)
        logits = tuned.run(tokens.ids, do=interventions.patch(site, changed), attention_mask=mask).logits
        assert logits is not None
        return kl(reference, logits.float().log_softmax(-1))

    active = codes.indices[tokens.mask][codes.values[tokens.mask] != 0].unique()
    others = active[~torch.isin(active, chosen)]
    count = int(torch.isin(chosen, active).sum())
    if len(others) < count:
        raise ValueError(f"{count} chosen latents are active here, and only {len(others)} others to compare them with")
    generator = torch.Generator().manual_seed(seed)
    picks = [others[torch.randperm(len(others), generator=generator)[:count]] for _ in range(draws)]
    return Transplant(
        measured(None),
        measured(chosen),
        torch.stack([measured(pick) for pick in picks]),
        measured(torch.arange(crosscoder.width)),
        real,
    )


def _sum(codes: Codes, which: Int[Tensor, " latent"], rows: Float[Tensor, "width d"]) -> Float[Tensor, "*row d"]:
    """What these latents alone write of `rows`."""
    kept = codes.values * torch.isin(codes.indices, which)
    flat = codes.indices.flatten(0, -2)
    y = torch.nn.functional.embedding_bag(flat, rows, per_sample_weights=kept.flatten(0, -2).to(rows.dtype), mode="sum")
    return y.reshape(*codes.indices.shape[:-1], -1)
