"""Which features carry the answer, and what are they? A sparse dictionary's latents, patched one set at a time.

Where the direction was found, a dictionary is learned from text, or the user's own is read there. Gradients on one half
of the prompts say which of its latents carry what differs between clean and corrupted runs; on the other half these are
patched from clean into corrupted runs, beside random latents that are active there and beside an untrained dictionary's
latents, chosen alike. Text without which there is none: where nobody gave any, the model writes its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.dictionaries import BatchTopK, Dictionary, train
from patchclamp.dictionaries.latents import Latents
from patchclamp.dictionaries.measures import fvu, random_dictionary
from patchclamp.evaluation.cards import Card, Cards, cards
from patchclamp.inputs import beginning
from patchclamp.intervals import Interval, bootstrap
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.tasks import Task

SIZES = (1, 2, 4, 8, 16)
"""How many latents are patched together."""
ENOUGH = 0.8
"""Of what all latents together bring back: the fewest that do are named."""
LIMIT = 3e13
"""Floating-point operations that text and a dictionary of its own may take; what takes more is not done, and said."""
_TEXTS, _TOKENS = 512, 48
_PART, _WIDTH, _STEPS, _BATCH = BatchTopK(k=16), 4, 600, 512
_RANDOM = 10


@dataclass(frozen=True, eq=False)
class Features:
    """The latents `named` at `site`, the strongest first, and what they bring back of the answer: 0 as in the corrupted
    prompts, 1 as in the clean ones.

    `carried` [size] is by how many latents are patched, `untrained` the same of an untrained dictionary, `random`
    [size, draw] of random active latents; `every` of all latents together, `alone` of each named one. `interval` is
    that of `measured` over prompts; `unexplained` the share of the site's variance that the dictionary leaves.
    """

    site: str
    source: str
    width: int
    unexplained: float
    named: tuple[int, ...]
    interval: Interval
    carried: tuple[float, ...]
    untrained: tuple[float, ...]
    random: tuple[tuple[float, ...], ...]
    every: float
    alone: tuple[float, ...]
    cards: Cards | None

    @property
    def measured(self) -> float:
        """What the named latents bring back together."""
        return self.carried[SIZES.index(len(self.named))]

    @property
    def controls(self) -> tuple[float, float]:
        """What as many latents of an untrained dictionary bring back, and the most of any random ones."""
        at = SIZES.index(len(self.named))
        return self.untrained[at], max(self.random[at])

    @property
    def holds(self) -> bool:
        """The whole interval is above both controls, and above nothing."""
        return self.interval[0] > max(0.0, *self.controls)

    def rows(self) -> list[dict[str, Any]]:
        """One row a named latent: what it brings back alone, when it fires, what it raises."""
        found: list[Card | None] = [None] * len(self.named) if self.cards is None else list(self.cards)
        return [
            {"latent": latent, "brings back alone": alone}
            | ({} if card is None else {"fires": card.explanation.says, "raises": _tokens(card)})
            for latent, alone, card in zip(self.named, self.alone, found, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "site": self.site,
            "dictionary": self.source,
            "width": self.width,
            "unexplained": self.unexplained,
            "latents": self.rows(),
            "sizes": list(SIZES),
            "carried": list(self.carried),
            "untrained": list(self.untrained),
            "random": [list(values) for values in self.random],
            "all": self.every,
            "holds": self.holds,
        }


def find(
    model: Model,
    choose: Task,
    judge: Task,
    site: Site | str,
    *,
    latents: Latents | None = None,
    texts: Sequence[str] = (),
    seed: int = 0,
) -> Features | str:
    """The latents chosen on `choose` and judged on `judge`, or why there are none. `latents` brings its own site."""
    texts, source = list(texts), "the user's own"
    if latents is None:
        too_much = _cost(model, own_text=not texts)
        if too_much > LIMIT:
            return (
                f"text and a dictionary of its own would take {too_much:.0e} operations (limit {LIMIT:.0e}): give one"
            )
        source = f"{_PART}, learned from {'these texts' if texts else 'what the model writes itself'} and the prompts"
        texts = texts or written(model, seed)
        if not texts:
            return f"{model.name} writes no text of its own to learn features from; give texts, or a dictionary"
        latents = _learned(model, choose, site, texts, seed).as_site(site)
    site = latents.site
    chosen, judged = _Runs.of(model, choose, site), _Runs.of(model, judge, site)
    order = chosen.attribution(latents).argsort(descending=True).tolist()
    every = chosen.share(latents, range(latents.dictionary.width)).mean()
    enough = (size for size in SIZES if chosen.share(latents, order[:size]).mean() >= ENOUGH * every)
    named = order[: next(enough, SIZES[-1])]
    control = random_dictionary(latents.dictionary, seed).as_site(site)
    other = chosen.attribution(control).argsort(descending=True).tolist()
    active = (latents.codes(judged.clean).dense() != 0).flatten(0, -2).any(0).nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    drawn = [active[torch.randperm(len(active), generator=generator)].tolist() for _ in range(_RANDOM)]
    shares = [judged.share(latents, order[:size]) for size in SIZES]
    deck = None
    if texts and model.tokenizer is not None:
        deck = cards(
            latents.dictionary, model, [*texts, *(choose.clean_text or ())], site=site, latents=named, seed=seed
        )
    return Features(
        site=site,
        source=source,
        width=latents.dictionary.width,
        unexplained=judged.unexplained(latents),
        named=tuple(named),
        interval=bootstrap(shares[SIZES.index(len(named))], seed),
        carried=tuple(float(share.mean()) for share in shares),
        untrained=tuple(float(judged.share(control, other[:size]).mean()) for size in SIZES),
        random=tuple(tuple(float(judged.share(latents, rows[:size]).mean()) for rows in drawn) for size in SIZES),
        every=float(judged.share(latents, range(latents.dictionary.width)).mean()),
        alone=tuple(float(judged.share(latents, [latent]).mean()) for latent in named),
        cards=deck,
    )


def written(model: Model, seed: int = 0) -> list[str]:
    """Texts that the model writes out of nothing; none where it has no tokenizer, no token that begins a text, or
    cannot generate."""
    begin = beginning(model.tokenizer)
    if begin is None or not hasattr(model.hf, "generate"):
        return []
    start = torch.full((_TEXTS, 1), begin)
    found = model.generate(start, max_new_tokens=_TOKENS, do_sample=True, seed=seed).new_text
    return [text for text in found or () if len(text.split()) > 1]


@dataclass(frozen=True, eq=False)
class _Runs:
    """A task's clean and corrupted runs at one site, with the gradient of the logit difference in the latter."""

    model: Model
    task: Task
    clean: Any
    corrupt: Any
    right: Float[Tensor, "prompt"]
    wrong: Float[Tensor, "prompt"]

    @classmethod
    def of(cls, model: Model, task: Task, site: str) -> "_Runs":
        clean = model.run(task.clean, record=site, attention_mask=task.mask)
        corrupt = model.run(
            task.corrupt, record=site, attention_mask=task.mask, grad=lambda logits: _difference(logits, task).sum()
        )
        right, wrong = (_difference(run.logits, task).detach() for run in (clean, corrupt))
        return cls(model, task, clean, corrupt, right, wrong)

    def attribution(self, latents: Latents) -> Float[Tensor, " width"]:
        """What patching each latent brings back, to first order, in logits: (f' - f) W_dec · gradient."""
        moved = latents.codes(self.clean).dense() - latents.codes(self.corrupt).dense()
        slope = self.corrupt.grad[latents.site] @ latents.dictionary.W_dec.T.to(moved)
        return (moved * slope).flatten(1, -2).sum(1).mean(0)

    def share(self, latents: Latents, which: Sequence[int]) -> Float[Tensor, "prompt"]:
        """What patching these latents brings back, exactly: each prompt's, as a share of what all prompts lack."""
        run = self.model.run(
            self.task.corrupt, do=[latents.patch(list(which), self.clean)], attention_mask=self.task.mask
        )
        return (_difference(run.logits, self.task) - self.wrong) / (self.right - self.wrong).mean()

    def unexplained(self, latents: Latents) -> float:
        x = self.clean[latents.site][self.task.mask.bool()]
        return fvu(x, latents.dictionary(x))


def _difference(logits: Tensor | None, task: Task) -> Float[Tensor, "prompt"]:
    assert logits is not None
    return metrics.logit_difference(task.at_answer(logits).float(), task)


def _learned(model: Model, task: Task, site: Site | str, texts: Sequence[str], seed: int) -> Dictionary:
    """A dictionary of the texts' activations and, about as many, the prompts' own: rare in text, they are the topic."""
    rows = []
    for start in range(0, len(texts), 64):
        run = model.run(list(texts[start : start + 64]), record=site, stop=True)
        mask = run.mask.clone()
        mask[:, 0] = False  # the token that begins a text, often of another size than all others
        rows.append(run[site][mask])
    own = [
        model.run(ids, record=site, attention_mask=task.mask, stop=True)[site][task.mask.bool()]
        for ids in (task.clean, task.corrupt)
    ]
    prompts = torch.cat(own)
    repeats = max(1, sum(map(len, rows)) // len(prompts))
    x = torch.cat([*rows, *[prompts] * repeats]).float()
    return train(_PART, x, width=_WIDTH * x.shape[-1], tokens=_STEPS * _BATCH, batch=_BATCH, seed=seed)


def _cost(model: Model, own_text: bool) -> float:
    """Floating-point operations: the model over its texts, twice where it writes them, and the dictionary's steps."""
    weights, tokens = sum(p.numel() for p in model.hf.parameters()), _TEXTS * _TOKENS
    return 2 * weights * tokens * (1 + own_text) + 6 * _STEPS * _BATCH * _WIDTH * model.d_model**2


def _tokens(card: Card) -> str:
    return ", ".join(repr(token) for token, _ in card.raises[:4])
