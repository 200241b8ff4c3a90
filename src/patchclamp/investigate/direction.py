"""Directions that carry the answer: differences of means, added until the behaviour flips.

Two kinds are tried. *State*: prompts come in two states (which answer stands first in the prompt, which of two answers
is right, or else clean against corrupted), and one direction leads from the mean of one state to that of the other.
*Answers*: where each prompt has one right and one wrong answer, the direction of a prompt is the mean over prompts with
its wrong answer minus the mean over those with its right one. Kind, layer and position are chosen on half of the
prompts. Added at strength s to the other half, the direction moves one mean s of the way onto the other; random
directions of the same norm are added beside it.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import add
from patchclamp.model import Model
from patchclamp.recording import Recording
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views.terminal import track

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_RANDOM = 10
_NEAR = 0.02


@dataclass(frozen=True, eq=False)
class Flip:
    """The dose-response: share of held-out prompts whose wrong answer comes to beat the right one.

    `vectors` [prompt, d_model] is what strength 1 adds to each of the held-out prompts.
    """

    site: str
    position: str
    kind: Literal["state", "answers"]
    states: str
    vectors: Float[Tensor, "prompt d_model"]
    strengths: tuple[float, ...]
    flipped: tuple[float, ...]
    random_flipped: tuple[tuple[float, ...], ...]  # by strength, over random directions of the same norm

    @property
    def norm(self) -> float:
        """Mean length of what strength 1 adds."""
        return float(self.vectors.norm(dim=-1).mean())

    @property
    def at_one(self) -> float:
        """Share flipped at strength 1: one mean put onto the other."""
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
    roles = [
        role for role, where in choose.labels.items() if bool((where >= 0).all() & (judge.labels[role] >= 0).all())
    ]
    clean = model.run(choose.clean, record=sites, attention_mask=choose.mask).recording
    corrupt = model.run(choose.corrupt, record=sites, attention_mask=choose.mask).recording
    tried: list[tuple[float, Site, str, _Means]] = []
    for site, role in track(list(itertools.product(sites, roles)), "looking for a direction"):
        tried += [
            (_flipped(model, choose, site, role, means.push(choose)), site, role, means)
            for means in _candidates(choose, clean, corrupt, site, role)
        ]
    # Of those that do nearly as well as the best: one direction for all prompts before many, the earliest layer.
    most = max(share for share, *_ in tried)
    near = [row for row in tried if row[0] >= most - _NEAR]
    _, site, role, means = min(near, key=lambda row: (row[3].kind == "answers", row[1].layer, -row[0]))
    push = means.push(judge)
    generator = torch.Generator().manual_seed(seed)
    randoms = []
    for _ in range(_RANDOM):
        random = torch.randn(push.shape[-1], generator=generator).to(push)
        randoms.append(push.norm(dim=-1, keepdim=True) * random / random.norm())
    flipped, random_flipped = [], []
    for strength in track(STRENGTHS, "dose and response"):
        flipped.append(_flipped(model, judge, site, role, strength * push))
        random_flipped.append(tuple(_flipped(model, judge, site, role, strength * r) for r in randoms))
    return Flip(
        str(site), role, means.kind, means.states, push.float().cpu(), STRENGTHS, tuple(flipped), tuple(random_flipped)
    )


@dataclass(frozen=True, eq=False)
class _Means:
    """Means of the stream at one place: of two states, or by answer token; `push` is the way from one to another."""

    kind: Literal["state", "answers"]
    states: str
    difference: Tensor | None = None  # [d]: from the first state to the second
    by_answer: dict[int, Tensor] | None = None

    def push(self, task: Task) -> Float[Tensor, "prompt d_model"]:
        if self.by_answer is None:
            assert self.difference is not None
            _, second = _states(task)
            return torch.where(second[:, None].to(self.difference.device), -self.difference, self.difference)
        zero = torch.zeros_like(next(iter(self.by_answer.values())))
        pairs = zip(task.answers[:, 0].tolist(), task.wrong[:, 0].tolist(), strict=True)
        known = self.by_answer
        return torch.stack([known[w] - known[r] if r in known and w in known else zero for r, w in pairs])


def _candidates(task: Task, clean: Recording, corrupt: Recording, site: Site, role: str) -> list[_Means]:
    rows, where = torch.arange(len(task)), task.labels[role]
    first, second = clean[site][rows, where], corrupt[site][rows, where]
    states, away = _states(task)
    away = away[:, None].to(first.device)
    found = [_Means("state", states, torch.where(away, first - second, second - first).mean(0))]
    if task.answers.shape[1] == task.wrong.shape[1] == 1 and len(task.answers.unique()) > 2:
        by_answer: dict[int, list[Tensor]] = {}
        for row in range(len(task)):
            by_answer.setdefault(int(task.answers[row, 0]), []).append(first[row])
            by_answer.setdefault(int(task.wrong[row, 0]), []).append(second[row])
        means = {answer: torch.stack(vectors).mean(0) for answer, vectors in by_answer.items()}
        found.append(_Means("answers", "the prompts of each answer", by_answer=means))
    return [means for means in found if bool(means.push(task).any())]


def _states(task: Task) -> tuple[str, Bool[Tensor, "prompt"]]:
    """What the two states are, and which clean prompts are in the second one (their corrupted twins in the other)."""
    right, wrong = task.answers[:, 0], task.wrong[:, 0]
    if task.answers.shape[1] == task.wrong.shape[1] == 1:
        at_right, at_wrong = ((task.clean == side[:, None]).int() for side in (right, wrong))
        if bool(at_right.any(1).all()) and bool(at_wrong.any(1).all()):
            return "which answer stands first in the prompt", at_right.argmax(1) > at_wrong.argmax(1)
        if len(right.unique()) == 2:
            return "which of two answers is right", right == right.unique()[1]
    return "clean or corrupted", torch.zeros(len(task), dtype=torch.bool)


def _flipped(model: Model, task: Task, site: Site, role: str, push: Tensor) -> float:
    """Share of prompts whose wrong answer wins with `push` added at the role's position."""
    do = [add(site, push, pos=task.labels[role][:, None])]
    logits = model.run(task.clean, do=do, attention_mask=task.mask).logits
    assert logits is not None
    return 1 - float(metrics.accuracy(task.at_answer(logits).float(), task).mean())
