"""What steering is meant to change, measured a prompt at a time; and what it should leave alone.

joyful = pc.steering.behaviour.writes_words(prompts, words={"sun", "laugh"}, tokens=16)
joyful.measure(model, do=[direction.add(2.0)])       # [prompt]
choose, judge = joyful.halves(seed=0)
cost = pc.steering.behaviour.Neutral(model, texts).measure(do)      # nats that neutral text gets less likely
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.tasks import Task

Do = Sequence[Intervention]
Score = Callable[[Model, list[Any], "list[Intervention]"], Float[Tensor, "prompt"]]


@dataclass(frozen=True)
class Behaviour:
    """`score(model, prompts, do)` gives one value a prompt; more is more of the behaviour."""

    name: str
    prompts: list[Any]
    score: Score

    def measure(self, model: Model, do: Do = ()) -> Float[Tensor, "prompt"]:
        """The behaviour on each prompt under these interventions."""
        return self.score(model, self.prompts, list(do)).detach().float().cpu()

    def halves(self, seed: int = 0) -> "tuple[Behaviour, Behaviour]":
        """Two random halves: one to choose on, one to judge on."""
        if len(self.prompts) < 4:
            raise ValueError(f"{self.name}: {len(self.prompts)} prompts cannot be split into two halves")
        order = torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(seed)).tolist()
        middle = len(order) // 2
        first, second = ([self.prompts[i] for i in sorted(part)] for part in (order[:middle], order[middle:]))
        return replace(self, prompts=first), replace(self, prompts=second)


def writes_words(prompts: Sequence[str], words: Collection[str], *, tokens: int = 16, name: str = "") -> Behaviour:
    """Share of the words written after each prompt (greedily, `tokens` tokens) that are among `words`, in any case."""
    wanted = {word.strip().lower() for word in words}

    def score(model: Model, prompts: list[str], do: list[Intervention]) -> Tensor:
        texts = model.generate(list(prompts), do=do, max_new_tokens=tokens).new_text
        assert isinstance(texts, list)
        split = [[word.strip(".,!?;:\"'()").lower() for word in text.split()] for text in texts]
        return torch.tensor([sum(w in wanted for w in found) / max(1, len(found)) for found in split])

    return Behaviour(name or "writes the words", list(prompts), score)


def begins_with(prompts: Sequence[Any], starts: Collection[str], *, tokens: int = 8, name: str = "") -> Behaviour:
    """1 where the continuation, generated greedily, begins with one of `starts` (refusals, say), else 0."""
    begins = tuple(start.strip().lower() for start in starts)

    def score(model: Model, prompts: list[Any], do: list[Intervention]) -> Tensor:
        texts = model.generate(list(prompts), do=do, max_new_tokens=tokens).new_text
        assert isinstance(texts, list)
        return torch.tensor([float(text.strip().lower().startswith(begins)) for text in texts])

    return Behaviour(name or "begins with", list(prompts), score)


def contains(prompts: Sequence[Any], phrases: Collection[str], *, tokens: int = 16, name: str = "") -> Behaviour:
    """1 where the continuation, generated greedily, has one of `phrases` in it, in any case, else 0."""
    wanted = [phrase.lower() for phrase in phrases]

    def score(model: Model, prompts: list[Any], do: list[Intervention]) -> Tensor:
        texts = model.generate(list(prompts), do=do, max_new_tokens=tokens).new_text
        assert isinstance(texts, list)
        return torch.tensor([float(any(phrase in text.lower() for phrase in wanted)) for text in texts])

    return Behaviour(name or "contains", list(prompts), score)


def log_odds(prompts: Sequence[Any], tokens: Sequence[int], *, name: str = "") -> Behaviour:
    """log p - log(1 - p) of the next token being one of `tokens`, in nats (arXiv:2406.11717, appendix B)."""
    ids = list(tokens)

    def score(model: Model, prompts: list[Any], do: list[Intervention]) -> Tensor:
        logits = last_logits(model, prompts, do).double()
        rest = torch.ones(logits.shape[-1], dtype=torch.bool)
        rest[ids] = False
        return logits[:, ids].logsumexp(-1) - logits[:, rest].logsumexp(-1)

    return Behaviour(name or "log-odds", list(prompts), score)


def answers(task: Task, metric: Callable[..., Tensor] = metrics.accuracy) -> Behaviour:
    """`metric` of a task's clean prompts at their answers: accuracy by default."""

    def score(model: Model, rows: list[int], do: list[Intervention]) -> Tensor:
        part = task[rows]
        logits = model.run(part.clean, attention_mask=part.mask, do=do).logits
        assert logits is not None
        return metric(part.at_answer(logits).float(), part)

    return Behaviour(task.name, list(range(len(task))), score)


def last_logits(model: Model, prompts: Any, do: Do = (), batch: int = 64) -> Float[Tensor, "prompt vocab"]:
    """Logits after each prompt's last token."""
    tokens = model.tokens(prompts)
    found = []
    for start in range(0, len(tokens.ids), batch):
        ids, mask = tokens.ids[start : start + batch], tokens.mask[start : start + batch].bool()
        logits = model.run(ids, attention_mask=mask, do=_shared(do)).logits
        assert logits is not None
        places = torch.arange(mask.shape[1]).expand_as(mask)
        last = places.masked_fill(~mask.cpu(), -1).amax(1)
        found.append(logits[torch.arange(len(ids)), last.to(logits.device)].cpu())
    return torch.cat(found)


class Neutral:
    """What steering does to text that has nothing to do with it: cross-entropy and divergence, in nats a token."""

    def __init__(self, model: Model, texts: Any, *, batch: int = 64):
        self.model, self.batch = model, batch
        self.tokens = model.tokens(texts)
        self.reference = self._log_probabilities(())
        self.clean = float(self._cross_entropy(self.reference))

    def measure(self, do: Do) -> dict[str, float]:
        """`cross_entropy` under `do`, its `rise` over the clean model's, `perplexity` (ratio), and `kl` from the clean
        model's prediction to the steered one's, mean over tokens.
        """
        found = self._log_probabilities(do)
        loss = float(self._cross_entropy(found))
        kl = (self.reference.exp() * (self.reference - found)).sum(-1)[self._predicting].mean()
        rise = loss - self.clean
        ratio = float(torch.tensor(rise, dtype=torch.float64).exp())
        return {"cross_entropy": loss, "rise": rise, "perplexity": ratio, "kl": float(kl)}

    @property
    def _predicting(self) -> Tensor:
        return self.tokens.mask[:, 1:].bool().cpu()

    def _cross_entropy(self, log_probabilities: Float[Tensor, "prompt pos vocab"]) -> Tensor:
        targets: Int[Tensor, "prompt pos"] = self.tokens.ids[:, 1:].cpu()
        return -log_probabilities.gather(-1, targets[..., None])[..., 0][self._predicting].mean()

    def _log_probabilities(self, do: Do) -> Float[Tensor, "prompt pos vocab"]:
        found = []
        for start in range(0, len(self.tokens.ids), self.batch):
            part = slice(start, start + self.batch)
            logits = self.model.run(self.tokens.ids[part], attention_mask=self.tokens.mask[part], do=_shared(do)).logits
            assert logits is not None
            found.append(logits[:, :-1].float().log_softmax(-1).cpu())
        return torch.cat(found)


def _shared(do: Do) -> Do:
    """The interventions, if they mean the same for every prompt, so that prompts may be run in batches."""
    for item in do:
        if item.rows is not None or (item.value is not None and item.value.ndim > 1) or item.source is not None:
            raise ValueError(f"{item} names or carries single prompts; what is measured here is done to all alike")
    return do
