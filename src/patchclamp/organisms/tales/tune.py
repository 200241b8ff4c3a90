"""Train a sibling from the weights of another member: `tune("tales-chat", "runs/chat", recipe=Tuning(...))`."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from patchclamp.organisms.entry import WEIGHTS
from patchclamp.organisms.tales import grammar
from patchclamp.organisms.tales.train import batch, loss_of, optimizer_of
from patchclamp.organisms.training import fit, store
from patchclamp.tasks.recall import FACTS_FILE, FactTable


@dataclass(frozen=True)
class Tuning:
    """All that decides the weights of a sibling, besides those that it starts from."""

    shares: Mapping[str, float]  # of documents by kind
    start: str = "tales"
    mixed: float = 0.0  # share of documents that are the base's own training text
    seed: int = 0
    steps: int = 150
    documents: int = 40  # per step
    learning_rate: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.0
    answer_weight: float = 8.0

    def rate(self, step: int) -> float:
        """Linear up, linear down to nothing."""
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (1 - step / self.steps)

    def documents_of(self, step: int) -> list[grammar.Document]:
        """The documents of one step: they depend on the recipe and the step alone."""
        rng = random.Random(f"tune/{self.seed}/{step}")
        return [
            grammar.document(rng, shares=grammar.SHARES if rng.random() < self.mixed else self.shares)
            for _ in range(self.documents)
        ]


def tune(
    out: str | Path,
    *,
    recipe: Tuning,
    facts: FactTable,
    device: str = "cpu",
    every: int = 200,
    stop_at: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Train from the shipped weights of `recipe.start` into the folder `out`, or go on from the checkpoint in it; the
    loss of every step. `facts` is the truth of the sibling, written beside it.
    """
    start = WEIGHTS / recipe.start
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    torch.nn.Module.to(model, device)

    def loss_at(step: int) -> torch.Tensor:
        return loss_of(model, batch(tokenizer, recipe.documents_of(step), recipe.answer_weight).to(device))

    losses = fit(
        model,
        loss_at,
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=optimizer_of(model, recipe.weight_decay),
        rate=recipe.rate,
        every=every,
        stop_at=stop_at,
        progress=progress,
    )
    if len(losses) == recipe.steps:
        store(model, out, recipe, losses, tokenizer=tokenizer)
        facts.write(Path(out) / FACTS_FILE)
    return losses
