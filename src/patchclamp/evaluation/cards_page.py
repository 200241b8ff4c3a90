"""Feature cards as one self-contained HTML page: plain tables and figures, made of `patchclamp.views`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from patchclamp.views import Details, Paragraph, Plot, Report, Section, Table, bars, show_token

if TYPE_CHECKING:
    from patchclamp.evaluation.cards import Card, Cards


def page(deck: "Cards") -> Report:
    """The page: a histogram, a table of all, and a section for each latent."""
    dead = sum(share == 0 for share in deck.density)
    overview = [
        Plot(histogram(deck.density), alt=f"How often latents are active; {dead} of {len(deck.density)} never are"),
        Table(deck.rows(), "Explanations by rules, with their AUROC on held-out documents beside a random latent's."),
    ]
    return Report(
        "Feature cards",
        facts=deck.facts,
        sections=[Section("All of them", overview), *(Section(f"Latent {card.latent}", _card(card)) for card in deck)],
    )


def histogram(density: Sequence[float]) -> Any:
    """Share of latents by how often they are active, by powers of ten; those that never are have a bar of their own."""
    alive = [share for share in density if share > 0]
    lowest = math.floor(math.log10(min(alive))) if alive else -1
    edges = list(range(lowest, 0))
    counts = [sum(edge <= math.log10(share) < edge + 1 for share in alive) for edge in edges]
    counts[-1] += sum(share >= 1 for share in alive)
    names = ["never", *(f"{10.0**edge:g} to {10.0 ** (edge + 1):g}" for edge in edges)]
    shares = [count / max(1, len(density)) for count in (len(density) - len(alive), *counts)]
    return bars(names, shares, title="how often latents are active", x_title="share of latents")


def _card(card: "Card") -> list[Any]:
    found = card.explanation
    said = found.says if found.score is None else f"{found.says}: AUROC {found.score:.2f}, random {found.null:.2f}"
    parts: list[Any] = [Paragraph(f"Fires {said}. Active on {card.density:.2%} of tokens, up to {card.largest:.3g}.")]
    if card.detection is not None:
        one = card.detection
        parts.append(
            Paragraph(
                f"A judge: {one.explanation} Detects {one.accuracy:.0%} of 14 contexts (balanced {one.balanced:.0%}; "
                f"saying none: {one.none:.0%})."
            )
        )
    rows = [
        {"part": name, "value": max(context.values), "text": _text(str(context))}
        for name, contexts in card.examples.items()
        for context in contexts
    ]
    if rows:
        parts.append(Table(rows, "Where it is active: the strongest, and random ones by quarter of its values."))
    if card.raises:
        pairs = zip(card.raises, card.lowers, strict=True)
        logits = [{"raises": show_token(a), "by": x, "lowers": show_token(b), "by ": y} for (a, x), (b, y) in pairs]
        parts.append(Details("Logits", [Table(logits, "Tokens that its decoder row raises and lowers.")]))
    near = [{"latent": latent, "cosine": cosine} for latent, cosine in card.neighbours]
    return [*parts, Details("Neighbours", [Table(near, "Latents of most similar decoder rows.")])] if near else parts


def _text(text: str) -> str:
    return text.replace("\n", "↵")
