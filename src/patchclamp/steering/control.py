"""Control vectors: a direction for each of several layers, added together, and what that does to predictions.

    vector = pc.steering.control_vector(model, right, wrong, sites="resid_post.1:3")        # at the last token
    model.generate(prompts, do=vector.apply(1.5, keep_norm=True), max_new_tokens=16)
    pc.steering.monitor(model, prompts, vector.apply(1.5))        # KL from the clean model, entropy, top probability
    pc.steering.save_gguf(vector.directions, "vector.gguf", model_hint="llama")

After "Improving Reasoning Performance in Large Language Models via Representation Engineering" (Højer et al. 2025,
arXiv:2504.19483) and Zou et al. 2023 (arXiv:2310.01405).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.interventions import Intervention, When, edit
from patchclamp.model import Model
from patchclamp.positions import Position
from patchclamp.steering.behaviour import last_logits
from patchclamp.steering.direction import Direction, DirectionError, random
from patchclamp.steering.means import Pattern, differences, principal

Fit = Literal["difference", "principal"]


@dataclass(frozen=True, eq=False)
class ControlVector:
    """Directions at different sites that are added together."""

    directions: tuple[Direction, ...]

    def apply(
        self, strength: float = 1.0, *, keep_norm: bool = False, pos: Position = None, when: When = "all"
    ) -> list[Intervention]:
        """Add `strength` times each direction at its site; with `keep_norm` the activation keeps its length."""
        if not keep_norm:
            return [direction.add(strength, pos=pos, when=when) for direction in self.directions]
        return [edit(d.site, _turned(strength * d.vector), pos, when=when) for d in self.directions]

    def random(self, *, seed: int = 0) -> "ControlVector":
        """Random directions of the same norms at the same sites: the control."""
        return ControlVector(tuple(random(d, seed=1000 * seed + n) for n, d in enumerate(self.directions)))


def control_vector(
    model: Model, positive: Any, negative: Any, *, sites: Pattern, fit: Fit = "difference", pos: Position = -1
) -> ControlVector:
    """At each site the difference of means, or the first principal component of paired differences.

    For "principal", prompt i of one side goes with prompt i of the other. Raises `DirectionError` for fewer than 8
    prompts on a side, and where a difference is zero.
    """
    if fit == "difference":
        found = list(differences(model, positive, negative, sites=sites, pos=pos).values())
    elif fit == "principal":
        found = [principal(model, positive, negative, site=site, pos=pos) for site in model.sites(sites)]
    else:
        raise DirectionError(f"fit={fit!r}: 'difference' or 'principal'")
    return ControlVector(tuple(found))


@dataclass(frozen=True, eq=False)
class Monitor:
    """By prompt, of the next token: KL(steered | clean) and entropy in nats, and the probability of the likeliest."""

    kl: Float[Tensor, "prompt"]
    entropy: Float[Tensor, "prompt"]
    top: Float[Tensor, "prompt"]


def monitor(model: Model, prompts: Any, do: Sequence[Intervention]) -> Monitor:
    """What interventions do to the distribution behind each prompt; with none of them `kl` is exactly 0."""
    clean, now = (last_logits(model, prompts, some).double().log_softmax(-1) for some in ((), do))
    probabilities = now.exp()
    kl = torch.where(probabilities > 0, probabilities * (now - clean), 0.0).sum(-1)
    return Monitor(kl, torch.special.entr(probabilities).sum(-1), probabilities.amax(-1))


def _turned(vector: Tensor) -> Callable[..., Tensor]:
    def turn(x: Tensor, **_: Any) -> Tensor:
        moved = x + vector.to(x)
        return moved * (x.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    return turn
