"""Explanations by a judge, scored by detection: it explains a latent from examples, then says which texts activate it.

    class MyJudge:                                                  # a language model, or a person
        def explain(self, examples): ...                            # Contexts with values -> str
        def detect(self, explanation, contexts): ...                # Contexts without values -> a truth value each

    detection(firings, latent=17, judge=MyJudge())

Protocol and numbers as in Karvonen et al. 2025 (arXiv:2503.09532): 10 top and 5 sampled contexts to explain,
2 top, 2 sampled and 10 random ones to detect. A random context in which the latent does fire counts as active, so that
dense latents are not punished for it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from patchclamp.evaluation.firings import Context, Firings
from patchclamp.evaluation.labelled import shuffled


class Judge(Protocol):
    """Whoever explains latents."""

    def explain(self, examples: Sequence[Context]) -> str:
        """What the latent responds to, from contexts with its values."""
        ...

    def detect(self, explanation: str, contexts: Sequence[Context]) -> Sequence[bool]:
        """For each context, whether the latent is active somewhere in it; contexts have no values."""
        ...


@dataclass(frozen=True)
class Detection:
    """What a judge said and how well it detected. `none` is the accuracy of saying "none": report both."""

    latent: int
    explanation: str
    accuracy: float
    balanced: float
    none: float


class TokenJudge:
    """A judge without a language model: the tokens on which a latent was strongest, or those before them."""

    def explain(self, examples: Sequence[Context]) -> str:
        """The rule as JSON: which tokens, and whether the latent fires on them or after them."""
        on, after = Counter[str](), Counter[str]()
        for context in examples:
            for i, value in enumerate(context.values):
                if value > max(context.values) / 2:
                    on[context.tokens[i]] += 1
                    after[context.tokens[i - 1] if i else ""] += 1
        # The fewer different tokens, the more they explain.
        where, tokens = min((("on", on), ("after", after)), key=lambda pair: len(pair[1]))
        return json.dumps({where: sorted(tokens)}, ensure_ascii=False)

    def detect(self, explanation: str, contexts: Sequence[Context]) -> list[bool]:
        """Whether one of the tokens is there (and, for "after", is followed by another)."""
        ((where, tokens),) = json.loads(explanation).items()
        wanted = set(tokens)
        return [bool(wanted & set(context.tokens[: None if where == "on" else -1])) for context in contexts]


def detection(firings: Firings, latent: int, judge: Judge, *, seed: int = 0) -> Detection | None:
    """Let the judge explain from half of the documents and detect in the other half; None where the latent is active
    in fewer than four documents of either. ValueError where a judge answers not every context.
    """
    halves = _halves(firings, latent, seed)
    if halves is None:
        return None
    learn, asked = halves
    examples = [firings.context(row, latent) for row in _chosen(firings, latent, learn, 10, 5, seed)]
    generator = torch.Generator().manual_seed((seed * 2654435761 + latent) % 2**63)
    anywhere = _half_rows(firings, seed)
    random = anywhere[torch.randint(len(anywhere), (10,), generator=generator)].tolist()
    rows = [*_chosen(firings, latent, asked, 2, 2, seed), *random]
    contexts = [firings.context(rows[i], latent) for i in shuffled(len(rows), seed + latent).tolist()]
    explanation = judge.explain(examples)
    said = [bool(one) for one in judge.detect(explanation, [context.bare() for context in contexts])]
    if len(said) != len(contexts):
        raise ValueError(f"the judge was asked about {len(contexts)} contexts and answered {len(said)}")
    true = torch.tensor([context.active for context in contexts])
    right = torch.tensor(said) == true
    sides = [float(right[side].double().mean()) for side in (true, ~true) if bool(side.any())]
    return Detection(
        latent, explanation, float(right.double().mean()), sum(sides) / len(sides), float((~true).double().mean())
    )


def _half_rows(firings: Firings, seed: int) -> Tensor:
    """Rows of the documents in which contexts are detected."""
    documents, place = firings.document.unique(return_inverse=True)
    second = torch.zeros(len(documents), dtype=torch.bool)
    second[shuffled(len(documents), seed)[len(documents) // 2 :]] = True
    return second[place].nonzero().flatten()


def _halves(firings: Firings, latent: int, seed: int) -> tuple[Tensor, Tensor] | None:
    """The latent's rows to explain from and those to detect, the strongest of each document."""
    rows, values = firings.of(latent)
    order = values.argsort(descending=True, stable=True)
    seen: dict[int, int] = {}
    for row in rows[order].tolist():
        seen.setdefault(int(firings.document[row]), row)
    strongest = torch.tensor(list(seen.values()), dtype=torch.long)
    second = torch.isin(strongest, _half_rows(firings, seed))
    halves = strongest[~second], strongest[second]
    return halves if min(map(len, halves)) >= 4 else None


def _chosen(firings: Firings, latent: int, rows: Tensor, top: int, sampled: int, seed: int) -> list[int]:
    """The first `top` of the rows (they come by value), and others sampled in proportion to their value."""
    best, rest = rows[:top], rows[top:]
    if len(rest):
        generator = torch.Generator().manual_seed((seed * 2654435761 + latent + 1) % 2**63)
        weight = firings.values(latent)[rest].abs().double()
        picks = torch.multinomial(weight, min(sampled, len(rest)), generator=generator)
        rest = rest[picks]
    return [*best.tolist(), *rest.tolist()]
