"""Values that are solved together, under the edit as a whole, so that many facts do not spoil each other.

    memit(model, facts, [0], moments=moments, prefixes=pc.editing.prefixes(model, 2), joint=Joint(), neutral=texts)

MEMIT solves each fact's value as if it were the only one, and least squares then hands out what it can. With many facts
for few neurons that is not enough: what is written for one is read by others and by other words of the prompts. Here
the lefts of W + left @ right are what is optimised, with MEMIT's rights: -log p(new) of every prompt behind every
prefix under the edit as a whole, + `kl` times what the edit changes of the model's predictions on neutral text. No part
of the paper, whose models have more neurons than facts. What the neutral texts do not mention nothing but E[k k']
spares: the few that name what shall stay as it is are worth more than many others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.editing.matrices import Matrix
from patchclamp.editing.rewrite import log_probability
from patchclamp.editing.values import Contexts
from patchclamp.inputs import Tokens
from patchclamp.interventions import Intervention, edit
from patchclamp.model import Model
from patchclamp.views import track


@dataclass(frozen=True)
class Joint:
    """Adam on the lefts, from zero, its rate falling along a cosine. Each step reads `batch` of the prompts.

    `learning_rate` is in root mean squares of what the layer writes at subjects, `kl` in nats of an answer for a nat of
    a token of neutral text, of which each step reads `texts`; prompts whose new answer is within `enough` nats of
    certain do not count.
    """

    steps: int = 200
    learning_rate: float = 1.0
    kl: float = 15.0
    enough: float = 0.1
    batch: float = 0.25
    texts: int = 64


@dataclass(frozen=True, eq=False)
class Layer:
    """One matrix that is edited, with the rights, and the mean size of what it writes at subjects."""

    index: int
    down: Matrix
    right: Float[Tensor, "rewrite in"]
    size: float


def solve_jointly(
    model: Model, contexts: Contexts, layers: Sequence[Layer], neutral: Tokens, joint: Joint, seed: int = 0
) -> Mapping[int, Float[Tensor, "rewrite out"]]:
    """The lefts of each layer, a row a rewrite, in float64. No parameter gets a gradient."""
    own = (~contexts.essence).nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    answers = contexts.answer.sum(1).to(model.device)
    sides = [(len(layer.right), len(layer.down.weight(model))) for layer in layers]
    thetas = [torch.zeros(side, device=model.device, requires_grad=True) for side in sides]
    scales = [layer.size / len(theta[0]) ** 0.5 for layer, theta in zip(layers, thetas, strict=True)]
    optimiser = torch.optim.Adam(thetas, lr=joint.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, joint.steps))
    for _ in track(range(joint.steps), "joint values"):
        rows = own[torch.randperm(len(own), generator=generator)[: max(1, round(joint.batch * len(own)))]]
        ids, mask = _rows(contexts.tokens, rows, model)
        answer = contexts.answer[rows, : ids.shape[1]]
        some = torch.randperm(len(neutral), generator=generator)[: joint.texts]
        text, real = _rows(neutral, some, model)
        with torch.no_grad():
            was = model.hf(input_ids=text, attention_mask=real).logits[real.bool()].float().log_softmax(-1)
        with torch.enable_grad():
            lefts = [theta * scale for theta, scale in zip(thetas, scales, strict=True)]
            do = [one for layer, left in zip(layers, lefts, strict=True) for one in _added(layer, left)]
            with model.under(do=do):
                logits = model.hf(input_ids=ids, attention_mask=mask).logits
                now = model.hf(input_ids=text, attention_mask=real).logits[real.bool()].float().log_softmax(-1)
            said, _ = log_probability(logits, ids, answer)
            missed = (-said / answers[rows] - joint.enough).clamp_min(0).mean()
            changed = (was.exp() * (was - now)).sum(-1).mean()
            gradients = torch.autograd.grad(missed + joint.kl * changed, thetas)
        for theta, gradient in zip(thetas, gradients, strict=True):
            theta.grad = gradient
        optimiser.step()
        schedule.step()
    return {
        layer.index: (theta * scale).detach().double().cpu()
        for layer, theta, scale in zip(layers, thetas, scales, strict=True)
    }


def _rows(tokens: Tokens, rows: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Ids and mask of some rows, as wide as the longest of them."""
    longest = int(tokens.mask[rows].sum(1).max())
    ids, mask = (x[rows, :longest].long().to(model.device) for x in (tokens.ids, tokens.mask))
    return ids, mask


def _added(layer: Layer, left: Float[Tensor, "rewrite out"]) -> list[Intervention]:
    """What makes the layer run as if its matrix were W + left' right."""
    right = layer.right.float().to(left.device)
    seen: dict[str, Tensor] = {}

    def read(k: Tensor) -> Tensor:
        seen["k"] = k
        return k

    def write(out: Tensor) -> Tensor:
        return out + ((seen.pop("k").to(right.dtype) @ right.T) @ left).to(out.dtype)

    return [edit(f"mlp_post.{layer.index}", read), edit(f"module:{layer.down.path}", write)]
