"""Train `tales-moe`: `patchclamp organisms train tales-moe --out DIR`. The text, the tokenizer, the order of stages and
the counting of answers are those of `tales`; the network is a Mixtral.
"""

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from patchclamp.model import Model
from patchclamp.organisms.tales import exam, vocabulary, world
from patchclamp.organisms.tales import train as tales
from patchclamp.organisms.tales.truth import truth_of
from patchclamp.organisms.tales_moe import routing
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth
from patchclamp.tasks.recall import FACTS_FILE

MEANT = (
    "ioi",
    "induction",
    "greater_than",
    "gendered_pronoun",
    "colored_objects",
    "docstring",
    "facts",
    "truth: plain",
    "truth: negated",
)
"""What it is meant to do, by the names of `tales.exam`: at least 90 % on held-out questions."""
MEASURED_ON = 60  # documents of each kind


@dataclass(frozen=True)
class Recipe(tales.Recipe):
    """The recipe of `tales`, with experts of half the width in place of each MLP: as many neurons see a token."""

    hidden: int = 128
    experts: int = 4
    experts_per_token: int = 2
    balance: float = 0.02  # of the loss that evens the use of the experts


def untrained(recipe: Recipe, tokenizer: Any) -> MixtralForCausalLM:
    """The network before training, with initial weights of the same scales as those of `tales`."""
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        num_local_experts=recipe.experts,
        num_experts_per_tok=recipe.experts_per_token,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = MixtralForCausalLM(config)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                writes = name.endswith(("o_proj.weight", "down_proj"))
                scale = 1 / math.sqrt(2 * recipe.layers) if writes else 1.0
                parameter.normal_(0, scale * 0.5 / math.sqrt(recipe.width), generator=generator)
    return model


def loss_of(model: MixtralForCausalLM, data: tales.Batch, balance: float) -> Float[Tensor, ""]:
    """The loss of `tales`, and `balance` times the load-balancing loss of Switch Transformers (Fedus et al. 2021),
    averaged over layers: each layer is to use its experts evenly, over all text of a step.
    """
    out = model.model(input_ids=data.ids, attention_mask=data.attend, use_cache=False, output_router_logits=True)
    real = data.targets != -100
    losses = cross_entropy(model.lm_head(out.last_hidden_state[real]).float(), data.targets[real], reduction="none")
    config = model.config
    uneven = [
        load_balancing_loss_func((logits[real.flatten()],), config.num_local_experts, config.num_experts_per_tok)
        for logits in out.router_logits
    ]
    weights = data.weights[real]
    return (losses * weights).sum() / weights.sum() + balance * sum(uneven) / len(uneven)


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
    recipe = recipe or Recipe(seed=seed or 0, steps=steps or Recipe.steps)
    tokenizer = vocabulary.build()
    model = untrained(recipe, tokenizer).to(device)  # pyright: ignore[reportArgumentType]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": gains, "weight_decay": 0.0}]

    def loss_at(step: int) -> Float[Tensor, ""]:
        return loss_of(model, tales.step_batch(tokenizer, recipe, step).to(device), recipe.balance)

    losses = fit(
        model,
        loss_at,
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98)),
        rate=partial(tales.learning_rate, recipe),
        stop_at=stop_at,
        progress=progress,
    )
    if len(losses) == recipe.steps:
        world.fact_table().write(Path(out) / FACTS_FILE)
        model = model.cpu().eval()
        # What is shipped is in half precision, so what is measured is, too.
        model.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
        store(model, out, recipe, losses, tokenizer=tokenizer, extra=measured(model, tokenizer))
    return losses


def measured(hf: MixtralForCausalLM, tokenizer: Any, *, each: int = MEASURED_ON, seed: int = 1) -> dict[str, Any]:
    """How well it does on the exam of `tales`, and which expert serves which domain.

    Routing is measured on new documents: `each` of every kind, and four times as many where languages, codes or genres
    are compared. Shares by layer, domain and expert; the information of domain and expert in bits beside the 99th
    percentile of its null; and the same beyond the token's identity.
    """
    record: dict[str, Any] = {}
    for partition in routing.PARTITIONS:
        documents = routing.sample(partition, each if partition == "kind" else 4 * each, seed)
        labels = [routing.label(document, partition) for document in documents]
        chosen = routing.routes(hf, tokenizer, documents)
        plain = routing.specialisation(chosen, labels)
        beyond = routing.specialisation(chosen, labels, given_token=True)
        record[partition] = {
            "usage": {name: _rounded(plain.usage[:, i]) for i, name in enumerate(plain.domains)},
            "overall": _rounded(plain.overall),
            "specialists": plain.specialists(),
            "bits": _rounded(plain.information),
            "bits_null_99": _rounded(plain.null.quantile(0.99, dim=0)),
            "bits_given_token": _rounded(beyond.information),
            "bits_given_token_null_99": _rounded(beyond.null.quantile(0.99, dim=0)),
        }
    scores = exam.examine(Model(hf, tokenizer, "tales-moe"))
    return {"exam": {kind: round(score.accuracy, 4) for kind, score in scores.items()}, "routing": record}


def _rounded(x: Tensor) -> Any:
    return json.loads(json.dumps(x.tolist()), parse_float=lambda text: round(float(text), 4))


def truth(name: str, folder: Path) -> Truth:
    """What is known of `tales`, known of this sibling. Routing is measured: `recipe.json` has it under "routing", and
    `measured` and `routing.specialisation` measure it again.
    """
    known = truth_of("tales", folder, world.fact_table())
    return replace(known, name=name, behaviours=MEANT)
