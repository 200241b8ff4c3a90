"""Train `tales-vision`: `patchclamp organisms train tales-vision --out DIR`. The language model of the shipped `tales`
is frozen; a vision encoder and a projector learn, first to name who is on a picture, then to answer what is known.

The checkpoint at the end of naming, `organism:tales-vision@STEP`, can say who it sees; how much of what it knows of
them it can say is in `log.json`.
"""

import hashlib
import math
import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from patchclamp.organisms.entry import WEIGHTS
from patchclamp.organisms.tales import world
from patchclamp.organisms.tales.truth import truth_of
from patchclamp.organisms.tales_vision import exam, pictures
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth
from patchclamp.tasks.recall import FACTS_FILE

BASE = WEIGHTS / "tales"


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights: the language model by the hash of its file."""

    base: str
    seed: int = 0
    steps: int = 2400
    naming_steps: int = 1000
    batch: int = 48  # pictures in a step
    naming_share: float = 0.2  # of the pictures, after the first stage
    layers: int = 2
    width: int = 96
    heads: int = 4
    hidden: int = 192
    patch: int = 8
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.01


def base_hash(folder: Path = BASE) -> str:
    """Sixteen digits of the hash of the language model's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def untrained(recipe: Recipe, tokenizer: Any) -> LlavaForConditionalGeneration:
    """The network before training: the weights of `tales`, a random encoder and projector."""
    language = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    vision = CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_channels=1,
        image_size=pictures.SIZE,
        patch_size=recipe.patch,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(exam.IMAGE),
        image_seq_length=exam.IMAGE_TOKENS,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        torch.manual_seed(recipe.seed)
        model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    for part in (model.model.language_model, model.lm_head):
        part.requires_grad_(False)
    return model


def step_questions(recipe: Recipe, step: int) -> list[exam.Question]:
    """What is asked in one step: names alone in the first stage, then names and facts, in phrasings that are not kept
    for testing. Recipe and step alone decide.
    """
    rng = random.Random(f"tales-vision/{recipe.seed}/{step}")
    table, asked = world.fact_table(), []
    while len(asked) < recipe.batch:
        person = rng.choice(pictures.people())
        if step < recipe.naming_steps or rng.random() < recipe.naming_share:
            asked.append(exam.Question(exam.NAMING, person, person.split()[-1], True))
            continue
        relation = rng.choice(world.PERSON_RELATIONS)
        if exam.taught(person, relation):
            left_out = table.held_out_template(person, relation)
            text = rng.choice([t for i, t in enumerate(table.templates[relation]) if i != left_out])
            asked.append(exam.Question(text, person, world.answers()[person, relation], True))
    return asked


def loss_of(
    model: LlavaForConditionalGeneration, tokenizer: Any, asked: list[exam.Question], seed: str
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answers in nats, over new pictures."""
    given = exam.inputs(tokenizer, asked, seed=seed)
    given = {name: x.to(model.device) for name, x in given.items()}
    right = exam.answers(tokenizer, asked).to(model.device)
    states = model.model(**given, use_cache=False).last_hidden_state
    last = given["attention_mask"].sum(1) - 1
    logits = model.lm_head(states[torch.arange(len(asked), device=last.device), last])
    return torch.nn.functional.cross_entropy(logits, right)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine to a hundredth in each stage."""
    first = step < recipe.naming_steps
    begin, end = (0, recipe.naming_steps) if first else (recipe.naming_steps, recipe.steps)
    along = (step - begin) / (end - begin)
    return recipe.learning_rate * min((step - begin + 1) / recipe.warmup, 0.505 + 0.495 * math.cos(math.pi * along))


def train(
    name: str,
    out: str | Path,
    *,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
    recipe: Recipe | None = None,
    stop_at: int | None = None,
) -> list[float]:
    """Train into the folder `out`, or go on from the checkpoint in it; the loss of every step. `recipe` overrides seed
    and steps; `stop_at` ends early, as an interruption would.
    """
    recipe = recipe or Recipe(base_hash(), seed=seed or 0, steps=steps or Recipe.steps)
    if recipe.base != base_hash():
        raise ValueError(f"the recipe is for a language model {recipe.base}; the shipped `tales` is {base_hash()}")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = untrained(recipe, tokenizer).to(device)  # pyright: ignore[reportArgumentType]
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = fit(
        model,
        lambda step: loss_of(model, tokenizer, step_questions(recipe, step), f"tales-vision/{recipe.seed}/{step}"),
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=torch.optim.AdamW(
            learnt, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        ),
        rate=partial(learning_rate, recipe),
        snapshots=(recipe.naming_steps,),
        measure=lambda step: exam.examine(model, tokenizer),
        measure_every=200,
        stop_at=stop_at,
        progress=progress,
    )
    if len(losses) == recipe.steps:
        world.fact_table().write(Path(out) / FACTS_FILE)
        model = model.cpu().eval()
        # What is shipped is in half precision, so what is measured is, too.
        model.load_state_dict({key: half(value) for key, value in model.state_dict().items()})
        store(model, out, recipe, losses, tokenizer=tokenizer, extra={"exam": exam.examine(model, tokenizer)})
    return losses


def half(x: Tensor) -> Tensor:
    """As stored and loaded again."""
    return x.half().to(x.dtype) if x.is_floating_point() else x


def truth(name: str, folder: Path) -> Truth:
    """What is known of `tales`, of which this has the language model; who is drawn how is in `pictures.features`, what
    can be asked by picture in `exam.questions`.
    """
    return replace(truth_of("tales", folder, world.fact_table()), name=name)
