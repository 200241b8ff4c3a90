"""What a latent responds to, by rules that need no language model, learned on half of the text and judged on the rest.

    found = explain(firings, latent=17)
    found.rule, found.says, found.score        # "token", "on ' cat', ' dog'", 0.97: AUROC on documents not learned from
    found.null                                 # the same for a latent that fires as often, at random

A rule is a table of how often the latent fires given the token, the one before, both, the position, or a label of the
token; the rule is chosen among them on documents that neither it nor its score has seen. The best of several rules
says something about any latent, and the null says how much.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.evaluation.firings import Firings
from patchclamp.evaluation.labelled import shuffled

RULES = ("token", "previous token", "bigram", "position", "label")
FEWEST = 5
"""Firings that are needed in each part of the text."""
PRIOR = 2.0
"""Rows of the mean frequency that each entry of a table begins with."""
SIMPLER = 0.01
"""A rule must be better than those before it in RULES by so much."""


@dataclass(frozen=True)
class Explanation:
    """A rule, in words, with its AUROC on held-out documents, and the null's; None where firings are too few."""

    latent: int
    rule: str
    says: str
    score: float | None
    null: float | None

    @property
    def known(self) -> bool:
        return self.score is not None


def explain(firings: Firings, latent: int, *, seed: int = 0) -> Explanation:
    """Learn the rules on half of the documents, choose among them on a quarter, score the best on the last quarter."""
    parts = _parts(firings, seed)
    active = torch.zeros(len(firings), dtype=torch.bool)
    active[firings.of(latent)[0]] = True
    if min(int((active & part).sum()) for part in parts) < FEWEST:
        counts = ", ".join(str(int((active & part).sum())) for part in parts)
        return Explanation(latent, "", f"too rare to say: {counts} firings in the three parts of the text", None, None)
    rule, says, score = _best(firings, active, parts)
    # A null of its own seed: as many firings, on any tokens.
    random = torch.zeros_like(active)
    random[shuffled(len(active), 7919 * seed + latent + 1)[: int(active.sum())]] = True
    return Explanation(latent, rule, says, score, _best(firings, random, parts)[2])


def auroc(said: Float[Tensor, " row"], true: Bool[Tensor, " row"]) -> float:
    """P(a row where it is true is said higher than one where it is not), ties counting half; NaN for one kind alone."""
    order = said.double().unique(return_inverse=True)[1]
    yes = torch.bincount(order[true], minlength=int(order.max()) + 1).double()
    no = torch.bincount(order[~true], minlength=int(order.max()) + 1).double()
    below = no.cumsum(0) - no
    return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def _parts(firings: Firings, seed: int) -> list[Bool[Tensor, " row"]]:
    """Half, a quarter and a quarter of the documents, as masks of rows."""
    documents, place = firings.document.unique(return_inverse=True)
    order = torch.empty(len(documents), dtype=torch.long)
    order[shuffled(len(documents), seed)] = torch.arange(len(documents))
    share = order[place] / len(documents)
    return [share < 0.5, (share >= 0.5) & (share < 0.75), share >= 0.75]


def _best(firings: Firings, active: Tensor, parts: list[Tensor]) -> tuple[str, str, float]:
    learn, choose, judge = parts
    best: tuple[str, str, Tensor] | None = None
    best_score = -torch.inf
    for rule in RULES:
        made = _rule(rule, firings, active, learn)
        if made is None:
            continue
        says, said = made
        score = auroc(said[choose], active[choose])
        if best is None or score > best_score + SIMPLER:
            best, best_score = (rule, says, said), score
    assert best is not None
    return best[0], best[1], auroc(best[2][judge], active[judge])


def _rule(rule: str, firings: Firings, active: Tensor, learn: Tensor) -> tuple[str, Float[Tensor, " row"]] | None:
    """In words, and how likely the latent is in each row by this rule, learned where `learn` is; None: no such rule."""
    if rule == "label":
        return _by_label(firings, active, learn)
    previous = _previous(firings)
    if rule == "bigram":
        pairs = torch.stack([previous, firings.token], 1)
        keys = pairs.unique(dim=0, return_inverse=True)
        return _by_table(active, learn, keys[1], lambda i: _quoted(firings, *keys[0][i].tolist()), "on ")
    if rule == "position":
        return _by_table(active, learn, firings.position.clamp_max(31), lambda i: str(i), "at position ")
    key, before = (firings.token, "on ") if rule == "token" else (previous, "after ")
    tokens, place = key.unique(return_inverse=True)
    return _by_table(active, learn, place, lambda i: _quoted(firings, int(tokens[i])), before)


def _by_table(
    active: Tensor, learn: Tensor, key: Int[Tensor, " row"], name: Callable[[int], str], before: str
) -> tuple[str, Float[Tensor, " row"]]:
    keys = int(key.max()) + 1
    base = active[learn].double().mean()
    count = torch.bincount(key[learn], minlength=keys).double()
    hits = torch.bincount(key[learn & active], minlength=keys).double()
    rate = (hits + PRIOR * base) / (count + PRIOR)
    shown = [i for i in hits.argsort(descending=True, stable=True)[:5].tolist() if hits[i] > 0 and rate[i] > base]
    covered = float(hits[shown].sum() / hits.sum().clamp_min(1))
    says = f"{before}{', '.join(name(i) for i in shown)} ({covered:.0%} of its firings)" if shown else "on nothing"
    return says, rate[key]


def _by_label(firings: Firings, active: Tensor, learn: Tensor) -> tuple[str, Float[Tensor, " row"]] | None:
    """The one label that tells best whether the latent fires."""
    if firings.labels is None or not firings.label_names:
        return None
    labels, fires = firings.labels[learn].double(), active[learn].double()
    recall = fires @ labels / fires.sum()
    false = (1 - fires) @ labels / (1 - fires).sum()
    best = int((recall - false).argmax())
    says = f"where {firings.label_names[best]} holds ({float(recall[best]):.0%} of its firings)"
    return says, firings.labels[:, best].double()


def _previous(firings: Firings) -> Int[Tensor, " row"]:
    """The token before each row's, in its document; -1 for the first."""
    before = firings.token.roll(1)
    first = torch.ones(len(firings), dtype=torch.bool)
    first[1:] = firings.document[1:] != firings.document[:-1]
    return torch.where(first, -1, before)


def _quoted(firings: Firings, *tokens: int) -> str:
    return repr("".join("" if token < 0 else firings.show(token) for token in tokens))
