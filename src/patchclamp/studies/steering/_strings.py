"""A language that can be enumerated, and small models of it that are trained where they are needed, in seconds.

A text is three strings of four letters out of four, so that there are 256. One that follows another repeats it half of
the time, as samples in a list do. The base writes any; the expert, fine-tuned from it, is in the domain (strings that
begin and end with the same letter) more often than not.
"""

import copy
from itertools import product

import torch
import transformers
from torch import Tensor

from patchclamp.model import Model, wrap
from patchclamp.studies.lab import Lab
from patchclamp.views import track

LETTERS, LENGTH = 4, 4
START = 0
STRINGS = torch.tensor(list(product(range(1, LETTERS + 1), repeat=LENGTH)))
DOMAIN = STRINGS[:, 0] == STRINGS[:, -1]


def _common() -> Tensor:
    """[string] how often each is written: a chain of letters, some of which follow each other more often."""
    chain = (1.0 * torch.randn(LETTERS, LETTERS, generator=torch.Generator().manual_seed(0))).softmax(1)
    return chain[STRINGS[:, :-1] - 1, STRINGS[:, 1:] - 1].prod(1) / LETTERS


COMMON = _common()


def texts(n: int, generator: torch.Generator, domain: float | None = None) -> Tensor:
    """[n, 15] tokens. A new string is in the domain with probability `domain`, or as often as that comes."""
    share = COMMON[DOMAIN].sum()
    factors = torch.where(DOMAIN, domain / share, (1 - domain) / (1 - share)) if domain is not None else 1.0
    weights = COMMON * factors
    found: list[Tensor] = []
    for number in range(3):
        new = torch.multinomial(weights, n, replacement=True, generator=generator)
        again = torch.rand(n, generator=generator) < (0.5 if number else 0.0)
        found.append(torch.where(again, found[-1] if found else new, new))
    start = torch.full((n, 1), START)
    return torch.cat([torch.cat([start, STRINGS[chosen]], 1) for chosen in found], 1)


def models(lab: Lab, seed: int) -> tuple[Model, Model]:
    """Expert and base; with the base's initial weights, both, where the lab's are."""
    config = transformers.LlamaConfig(
        vocab_size=1 + LETTERS,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        bos_token_id=START,
        eos_token_id=None,
        pad_token_id=None,
    )
    base = lab.build(config)
    expert = copy.deepcopy(base.hf)
    if not lab.untrained:
        _train(base.hf, 2 * seed, 350, None)
        expert = copy.deepcopy(base.hf)
        _train(expert, 2 * seed + 1, 200, 0.6)
    return wrap(expert, name="expert"), base


def _train(hf: torch.nn.Module, seed: int, steps: int, domain: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    with torch.enable_grad():
        for _ in track(range(steps), "training on strings"):
            ids = texts(48, generator, domain)
            logits = hf(input_ids=ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def logits(model: Model, before: Tensor) -> Tensor:
    """[string, letter, vocabulary] logits for each letter of every string, behind the tokens `before`."""
    ids = torch.cat([before.expand(len(STRINGS), -1), STRINGS], 1)
    return model.hf(input_ids=ids).logits[:, len(before) - 1 : -1].float()


def probabilities(log_probabilities: Tensor) -> Tensor:
    """[string] probability of each string, among strings of letters: what else may come is left out."""
    letters = log_probabilities.double()
    letters = letters - letters[..., 1:].logsumexp(-1, keepdim=True)
    return letters.gather(-1, STRINGS[..., None])[..., 0].sum(1).exp()
