"""A small model that knows facts and little else, in two languages: trained where it is needed, in seconds.

A prompt is the start, two words of a relation, a name and a last word; the answer is one of eight objects, drawn for
each name and relation. Relations come in pairs, which share the first of their words and the objects; languages share
names and objects and no other word. There are more facts than the names' embeddings hold, so that MLPs are needed.
"""

import torch
import transformers
from torch import Tensor

from patchclamp.editing.selective import Selectivity, average_precision
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.studies.lab import Lab
from patchclamp.views import track

RELATIONS, NAMES, OBJECTS, LANGUAGES = 12, 72, 8, 2
STEPS = 1800
_PAIRS = RELATIONS // 2
_OWN = 1 + LANGUAGES * _PAIRS
_END = _OWN + LANGUAGES * RELATIONS
_NAME = _END + LANGUAGES
_OBJECT = _NAME + NAMES


def facts(seed: int) -> Tensor:
    """[name, relation]: the token of the answer."""
    drawn = torch.randint(OBJECTS, (NAMES, RELATIONS), generator=torch.Generator().manual_seed(seed))
    return _OBJECT + torch.arange(RELATIONS) // 2 * OBJECTS + drawn


def prompts(names: Tensor, relations: Tensor, language: Tensor | int) -> Tensor:
    """[n, 5] tokens."""
    first = 1 + language * _PAIRS + relations // 2
    own, end = _OWN + language * RELATIONS + relations, _END + language + torch.zeros_like(names)
    return torch.stack([torch.zeros_like(names), first, own, _NAME + names, end], 1)


def trained(lab: Lab, steps: int) -> Model:
    """The model after so many steps; with its initial weights where the lab's are."""
    config = transformers.GPT2Config(
        vocab_size=_OBJECT + _PAIRS * OBJECTS,
        n_embd=48,
        n_inner=256,
        n_layer=1,
        n_head=2,
        n_positions=8,
        activation_function="relu",
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = lab.build(config)
    if lab.untrained or not steps:
        return model
    answers, generator = facts(lab.seed), torch.Generator().manual_seed(lab.seed)
    optimizer = torch.optim.AdamW(model.hf.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    with torch.enable_grad():
        for _ in track(range(steps), "training on facts"):
            drawn = (torch.randint(n, (192,), generator=generator) for n in (NAMES, RELATIONS, LANGUAGES))
            names, relations, language = drawn
            logits = model.hf(input_ids=prompts(names, relations, language)).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, answers[names, relations])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def parts(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Names that find neurons, choose how many, and judge."""
    order = torch.randperm(NAMES, generator=torch.Generator().manual_seed(seed + 1))
    return order[: NAMES // 2], order[NAMES // 2 : 3 * NAMES // 4], order[3 * NAMES // 4 :]


def right(model: Model, seed: int, names: Tensor, language: int = 0, do: list[Intervention] | tuple = ()) -> Tensor:
    """[name, relation]: whether the answer is the likeliest token."""
    grid = torch.cartesian_prod(names, torch.arange(RELATIONS)).T
    logits = model.run(prompts(grid[0], grid[1], language), do=list(do)).logits
    assert logits is not None
    return (logits[:, -1].argmax(-1) == facts(seed)[grid[0], grid[1]]).double().view(-1, RELATIONS)


def selectivity(model: Model, names: Tensor, language: int = 0) -> list[Selectivity]:
    """Of each relation: how well the neurons, at the last word, tell its prompts from the others'."""
    grid = torch.cartesian_prod(names, torch.arange(RELATIONS)).T
    sites = [str(site) for site in model.sites("mlp_post.*")]
    run = model.run(prompts(grid[0], grid[1], language), record=sites, stop=True)
    rows = {site: run[site][:, -1] for site in sites}
    return [Selectivity({s: average_precision(x, grid[1] == r) for s, x in rows.items()}) for r in range(RELATIONS)]
