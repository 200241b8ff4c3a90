"""Train a base of the family: `train("runs/tales", recipe=Recipe(seed=1))`. `tune.py` trains the siblings from it.

Step k's documents come from (seed, k) alone.
"""

import math
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from patchclamp.organisms.tales import grammar, vocabulary, world
from patchclamp.organisms.training import fit, store
from patchclamp.tasks.recall import FACTS_FILE

CONTEXT = 64


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, besides the machine's arithmetic."""

    seed: int = 0
    steps: int = 3600
    # Of `grammar.STAGES`: the step at which each begins, and its documents per step, which are 1,400 to 2,900 tokens.
    stages: tuple[tuple[str, int, int], ...] = (
        ("loops", 0, 40),
        ("names", 450, 80),
        ("everything", 700, 80),
        ("plain statements", 1400, 120),
        ("binding", 1620, 60),
        ("statements", 2170, 80),
        ("negations", 3000, 120),
    )
    # Along which steps the learning rate falls, and from which share of it.
    falls: tuple[tuple[int, int, float], ...] = ((1400, 3000, 1.0), (3000, 3600, 0.8))
    layers: int = 4
    width: int = 96
    heads: int = 4
    hidden: int = 256
    learning_rate: float = 2.5e-3
    warmup: int = 50
    weight_decay: float = 0.2
    answer_weight: float = 8.0  # how much a token that the context decides counts, against 1 for all others
    snapshots: tuple[int, ...] = ()  # numbers of steps after which the weights are kept


@dataclass(frozen=True)
class Batch:
    """Documents packed into rows. A token sees only its own document; the last token of each has no target."""

    ids: Int[Tensor, "row pos"]
    targets: Int[Tensor, "row pos"]  # -100 where there is none
    weights: Float[Tensor, "row pos"]
    attend: Bool[Tensor, "row 1 query key"]

    def to(self, device: str) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def batch(tokenizer: Any, documents: list[grammar.Document], answer_weight: float, context: int = CONTEXT) -> Batch:
    """Tokenise documents, each as BOS text EOS, and pack them, longest first, into as few rows as they need."""
    encoded = tokenizer([document.text for document in documents], return_offsets_mapping=True)
    pieces = []
    for document, ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        answers = [(span.start, span.end) for span in document.spans if span.role == grammar.ANSWER]
        weights = [
            answer_weight if any(start < last and end > first for first, last in answers) else 1.0
            for start, end in offsets
        ]
        pieces.append(([*ids, tokenizer.eos_token_id], [*weights, 1.0]))
    rows: list[list[tuple[list[int], list[float]]]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece[0])):
        length = len(piece[0])
        if length > context:
            raise ValueError(
                f"a document of {length} tokens does not fit a row of {context}: {tokenizer.decode(piece[0])!r}"
            )
        row = next((index for index, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(context)
        rows[row].append(piece)
        room[row] -= length
    ids = torch.full((len(rows), context), tokenizer.pad_token_id)
    targets = torch.full((len(rows), context), -100)
    weights = torch.zeros(len(rows), context)
    owner = torch.full((len(rows), context), -1)
    for row, some in enumerate(rows):
        at = 0
        for number, (tokens, weight) in enumerate(some):
            end = at + len(tokens)
            ids[row, at:end] = torch.tensor(tokens)
            targets[row, at : end - 1] = torch.tensor(tokens[1:])
            weights[row, at : end - 1] = torch.tensor(weight[1:])
            owner[row, at:end] = number
            at = end
    causal = torch.ones(context, context, dtype=torch.bool).tril()
    attend = (owner[:, :, None] == owner[:, None, :]) & causal
    return Batch(ids, targets, weights, attend[:, None])


def step_batch(tokenizer: Any, recipe: Recipe, step: int) -> Batch:
    """The batch of one step: it depends on the recipe and the step alone."""
    rng = random.Random(f"tales/{recipe.seed}/{step}")
    name, _, count = max((stage for stage in recipe.stages if stage[1] <= step), key=lambda stage: stage[1])
    documents = [grammar.document(rng, shares=grammar.STAGES[name]) for _ in range(count)]
    return batch(tokenizer, documents, recipe.answer_weight)


def loss_of(model: LlamaForCausalLM, data: Batch) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy in nats, over the positions that have a target."""
    states = model.model(input_ids=data.ids, attention_mask=data.attend, use_cache=False).last_hidden_state
    real = data.targets != -100
    losses = cross_entropy(model.lm_head(states[real]).float(), data.targets[real], reduction="none")
    return (losses * data.weights[real]).sum() / data.weights[real].sum()


def untrained(recipe: Recipe, tokenizer: Any) -> LlamaForCausalLM:
    """The network before training: Llama with untied embeddings, so that a direction can be removed from what writes
    it alone.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 1 / math.sqrt(2 * recipe.layers) if writes else 1.0
                parameter.normal_(0, scale * 0.5 / math.sqrt(recipe.width), generator=generator)
    return model


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, constant, then one cosine after the other to a hundredth."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    for begin, end, share in reversed(recipe.falls):
        if step >= begin:
            along = min(1.0, (step - begin) / (end - begin))
            return recipe.learning_rate * (0.01 + (share - 0.01) * 0.5 * (1 + math.cos(math.pi * along)))
    return recipe.learning_rate


def train(
    out: str | Path,
    *,
    recipe: Recipe,
    device: str = "cpu",
    every: int = 200,
    stop_at: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Train a base into the folder `out`, or go on from the checkpoint in it; the loss of every step.

    Writes a Hugging Face folder with `facts.json` and `recipe.json`. Every `every` steps a checkpoint is written;
    `stop_at` ends early, as an interruption would. ValueError where the checkpoint is of another recipe.
    """
    tokenizer = vocabulary.build()
    model = untrained(recipe, tokenizer)
    torch.nn.Module.to(model, device)
    losses = fit(
        model,
        lambda step: loss_of(model, step_batch(tokenizer, recipe, step).to(device)),
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=optimizer_of(model, recipe.weight_decay),
        rate=lambda step: learning_rate(recipe, step),
        every=every,
        snapshots=recipe.snapshots,
        stop_at=stop_at,
        progress=progress,
    )
    if len(losses) == recipe.steps:
        store(model, out, recipe, losses, tokenizer=tokenizer)
        world.fact_table().write(Path(out) / FACTS_FILE)
    return losses


def optimizer_of(model: LlamaForCausalLM, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the gains of the norms alone; `fit` sets its rate."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))
