"""Numbers of a behaviour: one value per prompt, from the logits at the position where the prompt is answered.

A metric is a function `metric(logits, task) -> Float[Tensor, "prompt"]`. `task` is anything with `.answers` and
`.wrong`, token ids of shape [prompt, k]. A prompt may have several right and several wrong answers (greater-than has
dozens); rows with fewer than k are filled with -1, which every metric here skips.
"""

import difflib
from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class TaskLike(Protocol):
    """What a metric needs of a task: right and wrong answers as token ids, -1 where a row has fewer."""

    @property
    def answers(self) -> Int[Tensor, "prompt k"]: ...

    @property
    def wrong(self) -> Int[Tensor, "prompt j"]: ...


Metric = Callable[[Float[Tensor, "prompt vocab"], TaskLike], Float[Tensor, "prompt"]]


def logit_difference(logits: Float[Tensor, "prompt vocab"], task: TaskLike) -> Float[Tensor, "prompt"]:
    """Mean logit of the right answers minus mean logit of the wrong ones (Wang et al. 2022 for one of each).

    Linear in the logits, so that the direct effects of components sum to it; unchanged by a constant added to all
    logits.
    """
    return _mean(*_chosen(logits, task.answers, "answers")) - _mean(*_chosen(logits, task.wrong, "wrong"))


def probability(logits: Float[Tensor, "prompt vocab"], task: TaskLike) -> Float[Tensor, "prompt"]:
    """Probability that the next token is one of the right answers: their softmax probabilities summed, in [0, 1]."""
    return log_probability(logits, task).exp()


def probability_difference(logits: Float[Tensor, "prompt vocab"], task: TaskLike) -> Float[Tensor, "prompt"]:
    """Summed probability of the right answers minus that of the wrong ones, in [-1, 1] (Hanna et al. 2023,
    greater-than).
    """
    log_probabilities = logits.log_softmax(-1)
    right = _logsumexp(*_chosen(log_probabilities, task.answers, "answers"))
    wrong = _logsumexp(*_chosen(log_probabilities, task.wrong, "wrong"))
    return right.exp() - wrong.exp()


def log_probability(logits: Float[Tensor, "prompt vocab"], task: TaskLike) -> Float[Tensor, "prompt"]:
    """Natural log of the summed probability of the right answers; minus the cross-entropy when there is one answer."""
    return _logsumexp(*_chosen(logits.log_softmax(-1), task.answers, "answers"))


def accuracy(logits: Float[Tensor, "prompt vocab"], task: TaskLike) -> Float[Tensor, "prompt"]:
    """1 where the best right answer has a higher logit than the best wrong answer, else 0 (a tie is 0).

    This is a choice among the named answers. `top1` asks for more: that no token of the vocabulary does better.
    """
    return (_best(logits, task.answers, "answers") > _best(logits, task.wrong, "wrong")).to(logits.dtype)


def top1(logits: Float[Tensor, "prompt vocab"], task: TaskLike) -> Float[Tensor, "prompt"]:
    """1 where the model's most probable token, over the whole vocabulary, is one of the right answers, else 0."""
    _chosen(logits, task.answers, "answers")
    return (logits.argmax(-1, keepdim=True) == task.answers.to(logits.device)).any(-1).to(logits.dtype)


def rank(logits: Float[Tensor, "prompt vocab"], task: TaskLike) -> Float[Tensor, "prompt"]:
    """Rank of the best right answer in the whole vocabulary: 1 is the top prediction; tokens that tie do not count
    against it.
    """
    best = _best(logits, task.answers, "answers")
    return (logits > best[:, None]).sum(-1).to(logits.dtype) + 1


def kl_divergence(reference: Float[Tensor, "prompt vocab"]) -> Metric:
    """A metric: KL(softmax(reference) || softmax(logits)) in nats, over the whole vocabulary; 0 where they agree.

    `reference` is usually the unpatched model's logits on the same prompts. The metric raises ValueError where the
    shapes differ.
    """
    log_reference = reference.log_softmax(-1)

    def divergence(logits: Float[Tensor, "prompt vocab"], task: TaskLike) -> Float[Tensor, "prompt"]:
        if logits.shape != reference.shape:
            raise ValueError(
                f"kl_divergence was given reference logits of shape {tuple(reference.shape)} but is asked about logits "
                f"of shape {tuple(logits.shape)}; take the reference on the same prompts, at the answer position."
            )
        log_p = log_reference.to(logits.device)
        return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)

    return divergence


def normalise(
    patched: Float[Tensor, "*any"], clean: Float[Tensor, ""] | float, corrupted: Float[Tensor, ""] | float
) -> Float[Tensor, "*any"]:
    """(patched - corrupted) / (clean - corrupted): 0 is the corrupted run, 1 the clean one.

    Average over prompts before normalising: a mean of ratios is dominated by the prompts whose denominator is near 0.
    Raises ValueError where clean and corrupted are the same (to 1e-6 of their size).

    >>> normalise(torch.tensor([-2.0, 0.0, 2.0]), clean=2.0, corrupted=-2.0).tolist()
    [0.0, 0.5, 1.0]
    """
    clean, corrupted = torch.as_tensor(clean), torch.as_tensor(corrupted)
    gap = clean - corrupted
    flat = gap.abs() <= 1e-6 * torch.maximum(clean.abs(), corrupted.abs()).clamp_min(1e-6)
    if flat.any():
        where = f" in {int(flat.sum())} of {flat.numel()} entries" if flat.numel() > 1 else f" ({float(clean):.6g})"
        raise ValueError(
            f"the metric is the same on clean and corrupted prompts{where}, so there is nothing to normalise by: "
            "the corruption does not change the behaviour. "
            "Choose one that does (see task.baseline(model)), or normalise=False."
        )
    return (patched - corrupted.to(patched.device)) / gap.to(patched.device)


OF_NAMED_ANSWERS: frozenset[Metric] = frozenset({logit_difference, accuracy})
"""Metrics that look at no logit but those of the named answers."""

METRICS: dict[str, Metric] = {
    "logit_difference": logit_difference,
    "probability": probability,
    "probability_difference": probability_difference,
    "log_probability": log_probability,
    "accuracy": accuracy,
    "top1": top1,
    "rank": rank,
}


def by_name(name: str) -> Metric:
    """The metric called `name`; LookupError with the nearest names otherwise.

    >>> by_name("logit_difference") is logit_difference
    True
    """
    if name in METRICS:
        return METRICS[name]
    if name == "kl_divergence":
        raise LookupError(
            "kl_divergence compares with reference logits: pass kl_divergence(reference) instead of its name."
        )
    near = difflib.get_close_matches(name.lower().replace("-", "_").replace(" ", "_"), METRICS, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise LookupError(
        f"no metric is called '{name}'. {hint}There are: {', '.join(METRICS)}, and kl_divergence(reference)."
    )


def _chosen(
    values: Float[Tensor, "prompt vocab"], ids: Int[Tensor, "prompt k"], what: str
) -> tuple[Float[Tensor, "prompt k"], Bool[Tensor, "prompt k"]]:
    """The values of the tokens `ids`, and which of them are real (not -1)."""
    if values.ndim != 2:
        raise ValueError(
            f"a metric takes logits [prompt, vocab] at the answer position, not a tensor of shape "
            f"{tuple(values.shape)}; pick them with task.at_answer(logits)."
        )
    if ids.ndim != 2 or ids.shape[0] != values.shape[0]:
        raise ValueError(
            f"{what} has shape {tuple(ids.shape)}; {values.shape[0]} rows of logits need token ids of shape "
            f"[{values.shape[0]}, k]."
        )
    ids = ids.to(values.device)
    real = ids >= 0
    if not real.any(-1).all():
        row = int((~real.any(-1)).nonzero()[0])
        raise ValueError(f"row {row} has no token in {what}: this metric needs at least one.")
    if int(ids.max()) >= values.shape[1]:
        raise ValueError(f"{what} has token {int(ids.max())}, but the logits cover a vocabulary of {values.shape[1]}.")
    return values.gather(1, ids.clamp_min(0)), real


def _mean(values: Float[Tensor, "prompt k"], real: Bool[Tensor, "prompt k"]) -> Float[Tensor, "prompt"]:
    return values.masked_fill(~real, 0).sum(-1) / real.sum(-1)


def _logsumexp(values: Float[Tensor, "prompt k"], real: Bool[Tensor, "prompt k"]) -> Float[Tensor, "prompt"]:
    return values.masked_fill(~real, -torch.inf).logsumexp(-1)


def _best(logits: Float[Tensor, "prompt vocab"], ids: Int[Tensor, "prompt k"], what: str) -> Float[Tensor, "prompt"]:
    values, real = _chosen(logits, ids, what)
    return values.masked_fill(~real, -torch.inf).amax(-1)
