"""One direction for a behaviour, found automatically: the difference of means that mediates it, by layer and position.

    found = pc.steering.select(model, harmful, harmless, tokens=refusal_tokens, positions=(-1, -2), seed=0)
    found.direction, found.table()
    model.generate(harmful, do=found.direction.ablated(model), ...)

Of every layer's input and each position the difference of means is a candidate. On prompts that it was not computed
from, a candidate is judged by what ablating it everywhere leaves of the behaviour (bypass), by what adding it at its
own layer brings (induce), and by how far ablation moves the predictions on prompts without the behaviour (KL). The
least bypass score wins among those that pass (Arditi et al. 2024, arXiv:2406.11717, section 2.3 and appendix C). With
`neutral=` text a candidate must also leave that text nearly as likely as it was, and with `keeps=` leave a behaviour
that it should not touch: prompts of one form, and the first token of what follows them, do not show everything that a
direction is used for.

Ablation puts the component along a direction at zero, and where that of ordinary text is not at zero on average it
moves all text. So with `neutral=` candidates are made orthogonal to that text's mean state, and then zero is its mean
(what Marshall et al. 2024, arXiv:2411.09003, do by an affine map).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.steering.behaviour import Behaviour, Neutral, last_logits, log_odds
from patchclamp.steering.direction import Direction, DirectionError
from patchclamp.steering.means import activations, differences
from patchclamp.views.terminal import track

LATEST = 0.8  # share of the depth above which a direction is too near the output: it writes the tokens themselves
MOST_KL = 0.1  # nats
KEPT = 0.98  # share of the behaviour that should stay


@dataclass(frozen=True)
class Candidate:
    """A direction and its scores: `bypass` and `induce` are mean log-odds of the behaviour's tokens, `kl` is in nats.

    `rise` is what ablation costs neutral text, in nats a token, and `kept` what it leaves of the behaviour that should
    stay, as a share; NaN where there was none, and where the candidate was out before it was asked.
    """

    direction: Direction
    layer: int
    position: int
    bypass: float
    induce: float
    kl: float
    rise: float = float("nan")
    kept: float = float("nan")
    refused: str = ""

    def row(self) -> dict[str, Any]:
        """Plain data."""
        scores = {"bypass": self.bypass, "induce": self.induce, "KL": self.kl, "rise": self.rise, "kept": self.kept}
        return {"layer": self.layer, "position": self.position, **scores, "passes": not self.refused}


@dataclass(frozen=True)
class Selected:
    """The candidate that was chosen, and all of them; `clean` are the log-odds without any intervention, of the prompts
    with the behaviour and of those without.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    clean: tuple[float, float]

    @property
    def direction(self) -> Direction:
        """The direction, at the layer and position where it was found; its norm is that of the difference of means."""
        return self.chosen.direction

    def table(self) -> list[dict[str, Any]]:
        """One row a candidate."""
        return [candidate.row() for candidate in self.candidates]

    def _repr_html_(self) -> str:
        from patchclamp import views

        return views.html_table(self.table(), f"candidates; chosen: {self.direction}")


def select(
    model: Model,
    positive: Sequence[Any],
    negative: Sequence[Any],
    *,
    tokens: Sequence[int],
    positions: Sequence[int] = (-1, -2),
    validation: float = 0.25,
    neutral: Any = None,
    budget: float = 0.05,
    keeps: Behaviour | None = None,
    seed: int = 0,
) -> Selected:
    """The direction that mediates the behaviour of `positive` prompts (refused, say) which `negative` ones lack.

    `tokens` are what the behaviour begins with; `positions` count from each prompt's end. A share of `validation` of
    both sides judges and is not averaged over. Candidates are made orthogonal to the mean state of `neutral` text;
    ablation may cost it at most `budget` nats a token, and must leave 98 % of the behaviour that it `keeps` (that
    harmless requests are answered rightly, say). Raises `DirectionError` where no candidate passes, with the reasons.
    """
    high, high_held = _split(positive, validation, seed)
    low, low_held = _split(negative, validation, seed + 1)
    harm, harmless = log_odds(high_held, tokens), log_odds(low_held, tokens)
    text = None if neutral is None else Neutral(model, neutral)
    whole = None if keeps is None else float(keeps.measure(model).mean())
    clean = last_logits(model, low_held).double().log_softmax(-1)
    found = {at: differences(model, high, low, sites="resid_pre.*", pos=at) for at in positions}
    candidates = []
    every = [(at, site, direction) for at, by_site in found.items() for site, direction in by_site.items()]
    if neutral is not None:
        offsets = _means(model, neutral)
        every = [(at, site, direction.without(offsets[site])) for at, site, direction in every]
    for at, site, direction in track(every, "judging candidates"):
        assert site.layer is not None
        if direction.norm == 0:
            continue  # at the embeddings of a token that all prompts share
        ablated = direction.ablated(model)
        moved = last_logits(model, low_held, ablated).double().log_softmax(-1)
        kl = float((clean.exp() * (clean - moved)).sum(-1).mean())
        bypass = float(harm.measure(model, ablated).mean())
        induce = float(harmless.measure(model, [direction.add()]).mean())
        rise = float("nan") if text is None else text.measure(ablated)["rise"]
        refused = _refused(site.layer, model.n_layers, kl, induce)
        if not refused and rise > budget:
            refused = f"ablation costs neutral text more than {budget:.3g} nats a token"
        kept = float("nan")
        if keeps is not None and whole is not None and not refused:
            kept = float(keeps.measure(model, ablated).mean()) / whole if whole else 0.0
            refused = "" if kept >= KEPT else f"ablation leaves less than {KEPT:.0%} of: {keeps.name}"
        candidates.append(Candidate(direction, site.layer, at, bypass, induce, kl, rise, kept, refused))
    passing = [candidate for candidate in candidates if not candidate.refused]
    if not passing:
        reasons = sorted({candidate.refused for candidate in candidates})
        raise DirectionError(f"none of {len(candidates)} candidates passes: {'; '.join(reasons)}")
    before = float(harm.measure(model).mean()), float(harmless.measure(model).mean())
    return Selected(min(passing, key=lambda candidate: candidate.bypass), tuple(candidates), before)


def _means(model: Model, texts: Any) -> dict[Site, Direction]:
    """By layer the mean state of all tokens but each text's first, which is unlike all others."""
    every, first = (activations(model, texts, "resid_pre.*", pos=pos) for pos in (None, 0))
    sums = {site: every[site].double().sum(0) - first[site].double().sum(0) for site in every}
    return {site: Direction(str(site), total / (len(every[site]) - len(first[site]))) for site, total in sums.items()}


def _refused(layer: int, layers: int, kl: float, induce: float) -> str:
    """Why a candidate is out of the question; empty where it is not."""
    if layer >= LATEST * layers:
        return f"the last {1 - LATEST:.0%} of the layers"
    if not kl <= MOST_KL:
        return f"ablation moves other prompts by more than {MOST_KL} nats"
    return "" if induce >= 0 else "adding it does not bring the behaviour about"


def _split(prompts: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(1, round(share * len(order)))
    return [prompts[i] for i in order[held:]], [prompts[i] for i in order[:held]]
