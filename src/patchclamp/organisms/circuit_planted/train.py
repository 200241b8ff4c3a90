"""Train a GPT-2 until a known program runs in known components: `patchclamp organisms train planted-circuit:pointer`.

    model = pc.load("organism:planted-circuit:pointer")
    truth = pc.organisms.truth("planted-circuit:pointer")
    truth.alignment["place"]                                                 # Site mlp_out.0

Interchange-intervention training (Geiger et al. 2022, arXiv:2112.00826), strict (Gupta et al. 2024, arXiv:2407.14494):
half of each batch runs as it is; in the other half, components of the circuit and spare ones have activations of runs
of the first half. The right answers of these are the program's, with the variables of those components exchanged.
"""

import math
import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from patchclamp.model import Model, wrap
from patchclamp.organisms.circuit_planted.interpreter import evaluate, output_ids
from patchclamp.organisms.circuit_planted.measures import (
    answers_exchanged,
    draw_origins,
    interchange_accuracy,
    run_exchanged,
    spare_accuracy,
)
from patchclamp.organisms.circuit_planted.programs import FAMILY, PLANS, Plan
from patchclamp.organisms.compiled.compile import CompiledTruth
from patchclamp.organisms.compiled.program import BOS, Program
from patchclamp.organisms.training import fit, store


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, next to the plan. In a patched row, a component of the circuit is exchanged with
    probability `exchange`, the query, key or value of one of its heads with `ports`, a spare component with `resample`;
    `partly` of them at a random half of the positions.
    """

    seed: int = 0
    steps: int = 1500
    batch: int = 192
    width: int = 64
    hidden: int = 128
    exchange: float = 0.3
    ports: float = 0.15
    resample: float = 0.5
    partly: float = 0.5
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 100


RECIPES = {name: Recipe() for name in PLANS} | {
    FAMILY + "bracket-balance": Recipe(steps=800),
    FAMILY + "duplicate-removal": Recipe(steps=3000),
}


def network(plan: Plan, recipe: Recipe) -> GPT2LMHeadModel:
    """An untrained GPT-2."""
    config = GPT2Config(
        vocab_size=len(plan.program.vocabulary),
        n_positions=plan.program.length + 1,
        n_embd=recipe.width,
        n_layer=plan.layers,
        n_head=plan.heads,
        n_inner=recipe.hidden,
        activation_function="gelu",
        initializer_range=recipe.width**-0.5,
        bos_token_id=plan.program.vocabulary.index(BOS),
        eos_token_id=plan.program.vocabulary.index(BOS),
        tie_word_embeddings=False,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config).eval()


def draw(program: Program, n: int, seed: int, *, held_out: bool) -> Int[Tensor, "n pos"]:
    """`n` inputs from one side of the split. Held out is a fifth: its ids, each times its position, add up to
    a multiple of 5.
    """
    rng = random.Random(seed)
    assert program.draw is not None
    ids = {value: i for i, value in enumerate(program.vocabulary)}
    found: list[list[int]] = []
    while len(found) < n:
        row = [0, *(ids[token] for token in program.draw(rng, program.length))]
        if (sum(place * token for place, token in enumerate(row)) % 5 == 0) == held_out:
            found.append(row)
    return torch.tensor(found)


def split(program: Program, *, held_out: bool) -> tuple[Int[Tensor, "4096 pos"], Int[Tensor, "4096"]]:
    """4,096 inputs from one side of the split, with the answers at their last tokens."""
    return _answered(program, draw(program, 4096, 0, held_out=held_out))


def _answered(program: Program, tokens: Int[Tensor, "n pos"]) -> tuple[Int[Tensor, "n pos"], Int[Tensor, "n"]]:
    return tokens, output_ids(program, evaluate(program, tokens))[:, -1]


def loss_at(model: Model, plan: Plan, recipe: Recipe, step: int) -> Float[Tensor, ""]:
    """Cross-entropy of the program's answers, wherever there is one, on the batch of this step."""
    seed = (recipe.seed + 1) * 10_000_000 + step
    tokens = draw(plan.program, recipe.batch, seed, held_out=False)
    generator = torch.Generator().manual_seed(seed)
    origins = draw_origins(plan.nodes, tokens, share=recipe.exchange, partly=recipe.partly, generator=generator)
    origins |= draw_origins(plan.ports, tokens, share=recipe.ports, partly=recipe.partly, generator=generator)
    origins |= draw_origins(plan.spare, tokens, share=recipe.resample, partly=recipe.partly, generator=generator)
    answers = answers_exchanged(plan.program, plan.alignment, tokens, origins)
    logits = run_exchanged(model, tokens, origins)
    return cross_entropy(logits.flatten(0, 1), answers.flatten().to(model.device))


def train(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[float]:
    """Train into the folder `out`, or go on from the checkpoint in it; the loss of every step."""
    plan, recipe = PLANS[name], RECIPES[name]
    recipe = replace(recipe, seed=recipe.seed if seed is None else seed, steps=steps or recipe.steps)
    hf = network(plan, recipe)
    torch.nn.Module.to(hf, device)
    model, known = wrap(hf), truth(name, out)

    def rate(step: int) -> float:
        """Linear to the peak, then a cosine to a hundredth of it."""
        falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        return recipe.learning_rate * min(falling, (step + 1) / recipe.warmup)

    def measure(step: int) -> dict[str, float]:
        scores = interchange_accuracy(model, known, n=256)
        return {"spare": spare_accuracy(model, known, n=256)} | {site: score.right for site, score in scores.items()}

    losses = fit(
        model=hf,
        loss_at=lambda step: loss_at(model, plan, recipe, step),
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=torch.optim.AdamW(
            hf.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        ),
        rate=rate,
        measure=measure,
        measure_every=250,
        progress=progress,
    )
    store(hf, out, recipe, losses, extra={"interchange_accuracy": measure(recipe.steps)})
    return losses


def truth(name: str, folder: Path) -> CompiledTruth:
    """The circuit, by component and by edge; inputs that training never contained, with their answers."""
    plan = PLANS[name]

    def sample(n: int, seed: int) -> tuple[Int[Tensor, "n pos"], Int[Tensor, "n"]]:
        return _answered(plan.program, draw(plan.program, n, seed, held_out=True))

    return CompiledTruth(
        name=name,
        nodes=frozenset(plan.nodes),
        edges=plan.edges,
        alignment=plan.alignment,
        sampler=sample,
        splits={
            "train": partial(split, plan.program, held_out=False),
            "test": partial(split, plan.program, held_out=True),
        },
        program=plan.program,
    )
