"""One direction that carries the answer: the difference of two means, added until the behaviour flips.

Prompts come in two states: which of the two answers stands first in the prompt, or which of a few answers is right, or
else clean against corrupted. The direction is the mean residual stream in one state minus the mean in the other, at one
layer and position, both chosen on half of the prompts. Added at strength s to a prompt of the other half (with the sign
that leads away from its own state), it moves one state's mean s of the way onto the other's; a random direction of the
same norm is moved beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import add
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_RANDOM = 10


@dataclass(frozen=True, eq=False)
class Flip:
    """The dose-response of the direction: share of held-out prompts whose wrong answer comes to beat the right one."""

    site: str
    position: str
    states: str
    vector: Float[Tensor, "d_model"]
    strengths: tuple[float, ...]
    flipped: tuple[float, ...]
    random_flipped: tuple[tuple[float, ...], ...]  # by strength, over random directions of the same norm

    @property
    def at_one(self) -> float:
        """Share flipped at strength 1: one state's mean put onto the other's."""
        return self.flipped[self.strengths.index(1.0)]

    @property
    def random_at_one(self) -> tuple[float, float]:
        """Mean and largest share over the random directions, at strength 1."""
        values = self.random_flipped[self.strengths.index(1.0)]
        return sum(values) / len(values), max(values)

    @property
    def holds(self) -> bool:
        """More than half of the prompts flip at strength 1, and more than under any of the random directions."""
        return self.at_one > 0.5 and self.at_one > self.random_at_one[1]


def find(model: Model, choose: Task, judge: Task, *, seed: int = 0) -> Flip:
    """The direction found on the task `choose`, and what it does on `judge`."""
    sites = [Site("resid_post", layer) for layer in range(model.n_layers)]
    roles = {role: where for role, where in choose.labels.items() if bool((where >= 0).all())}
    states, away = _states(choose)
    clean = model.run(choose.clean, record=sites, attention_mask=choose.mask)
    corrupt = model.run(choose.corrupt, record=sites, attention_mask=choose.mask)
    best: tuple[float, float, Site, str, Tensor] | None = None
    with progress("looking for a direction", len(sites) * len(roles)) as advance:
        for site in sites:
            for role, where in roles.items():
                rows = torch.arange(len(choose))
                first, second = clean[site][rows, where], corrupt[site][rows, where]
                # of each pair of prompts one is in either state
                vector = torch.where(away[:, None], second - first, first - second).mean(0)
                advance()
                if not bool(vector.any()):
                    continue
                share, value = _effect(model, choose, site, where, vector, away, 1.0)
                if best is None or (share, -value) > best[:2]:
                    best = (share, -value, site, role, vector)
    if best is None:
        raise ValueError("the residual stream is the same in clean and corrupted prompts at every labelled position")
    _, _, site, role, vector = best
    _, away = _states(judge)
    generator = torch.Generator().manual_seed(seed)
    randoms = [torch.randn(vector.shape, generator=generator).to(vector) for _ in range(_RANDOM)]
    randoms = [r * vector.norm() / r.norm() for r in randoms]
    flipped, random_flipped = [], []
    with progress("dose and response", len(STRENGTHS)) as advance:
        for strength in STRENGTHS:
            flipped.append(_effect(model, judge, site, judge.labels[role], vector, away, strength)[0])
            random_flipped.append(
                tuple(_effect(model, judge, site, judge.labels[role], r, away, strength)[0] for r in randoms)
            )
            advance()
    return Flip(str(site), role, states, vector, STRENGTHS, tuple(flipped), tuple(random_flipped))


def _states(task: Task) -> tuple[str, Bool[Tensor, "prompt"]]:
    """What the two states are, and which prompts are in the second one."""
    right, wrong = task.answers[:, 0], task.wrong[:, 0]
    if task.answers.shape[1] == task.wrong.shape[1] == 1:
        at_right = (task.clean == right[:, None]).int()
        at_wrong = (task.clean == wrong[:, None]).int()
        if bool(at_right.any(1).all()) and bool(at_wrong.any(1).all()):
            return "which answer stands first in the prompt", at_right.argmax(1) > at_wrong.argmax(1)
        if len(right.unique()) == 2:
            return "which of two answers is right", right == right.unique()[1]
    return "clean or corrupted", torch.zeros(len(task), dtype=torch.bool)


def _effect(
    model: Model, task: Task, site: Site, where: Tensor, vector: Tensor, away: Tensor, strength: float
) -> tuple[float, float]:
    """(share of prompts whose wrong answer wins, mean logit difference) with the prompts pushed out of their state."""
    sign = torch.where(away, 1.0, -1.0).to(vector)
    pushed: Sequence = [add(site, sign[:, None] * vector, scale=strength, pos=where[:, None])]
    logits = model.run(task.clean, do=pushed, attention_mask=task.mask).logits
    assert logits is not None
    at = task.at_answer(logits).float()
    share = 1 - float(metrics.accuracy(at, task).mean())
    return share, float(metrics.logit_difference(at, task).mean())
