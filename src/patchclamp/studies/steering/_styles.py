"""Texts with four styles that are on or off independently of each other, and a small model of them trained in seconds.

A text is words of four sorts in turn (as noun, verb, ...). Each sort has two sets of words, and which of them a text
takes its words from is one of its styles: next to all words of one sort are of one set. So a style is a state that the
whole text keeps, it decides between two disjoint sets of words, and the other three say nothing about it. How long a
model is trained was chosen on that of seed 0.
"""

from collections.abc import Sequence

import torch
import transformers
from torch import Tensor

from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.studies.lab import Lab
from patchclamp.views import track

STYLES, WORDS, LENGTH = 4, 6, 25
STRAY = 0.05
"""How often a word is of the other set."""
START = 0
SETS = 1 + torch.arange(STYLES * 2 * WORDS).view(STYLES, 2, WORDS)
"""[style, off or on, word] tokens."""


def texts(on: Tensor, generator: torch.Generator) -> Tensor:
    """[text, 25] tokens of texts with these styles, [text, style] each 0 or 1."""
    n = len(on)
    sort = torch.arange(LENGTH - 1) % STYLES
    stray = (torch.rand(n, LENGTH - 1, generator=generator) < STRAY).long()
    which = on[:, sort] ^ stray
    word = torch.randint(WORDS, which.shape, generator=generator)
    return torch.cat([torch.full((n, 1), START), SETS[sort, which, word]], 1)


def drawn(n: int, generator: torch.Generator) -> Tensor:
    """[n, 4] styles."""
    return torch.randint(2, (n, STYLES), generator=generator)


def model(lab: Lab, seed: int) -> Model:
    """A model of such texts; with its initial weights where the lab's are."""
    own = lab.at(f"styles/{seed}").build(
        transformers.LlamaConfig(
            vocab_size=1 + SETS.numel(),
            hidden_size=48,
            intermediate_size=128,
            num_hidden_layers=STYLES,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=START,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    if not lab.untrained:
        _train(own.hf, seed)
    return own


def _train(hf: torch.nn.Module, seed: int, steps: int = 300) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    with torch.enable_grad():
        for _ in track(range(steps), "training on styles"):
            ids = texts(drawn(32, generator), generator)
            logits = hf(input_ids=ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def said(model: Model, ids: Tensor, do: Sequence[Intervention]) -> Tensor:
    """[style, text] probability of each style's words among all, where a word of its sort comes: the last two times."""
    logits = model.run(ids, do=list(do)).logits
    assert logits is not None
    probabilities = logits.double().softmax(-1).cpu()
    places = torch.arange(LENGTH - 1 - 2 * STYLES, LENGTH - 1).view(2, STYLES)
    return torch.stack([probabilities[:, places[:, s]][..., SETS[s, 1]].sum(-1).mean(1) for s in range(STYLES)])
