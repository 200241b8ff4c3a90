"""Feature cards: what each latent responds to, what it does to the logits, which others are like it.

deck = cards(dictionary, model, documents, site="resid_post.2", latents=[3, 17])      # or the rows of a store
deck[0].examples["top"], deck[0].raises, deck[0].explanation.says
deck.save("cards.html")                                                               # one self-contained page
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.anatomy.views import NormScale
from patchclamp.dictionaries import Dictionary
from patchclamp.evaluation.explanations import Explanation, explain
from patchclamp.evaluation.firings import Context, Firings, firings
from patchclamp.evaluation.judges import Detection, Judge, detection
from patchclamp.evaluation.labelled import shuffled
from patchclamp.patching.direct import norm_gain
from patchclamp.sites import Site
from patchclamp.views import track

if TYPE_CHECKING:
    from patchclamp.model import Model

QUANTILES = {"top": (1.0, 1.0), "upper": (0.75, 1.0), "middle": (0.25, 0.75), "lower": (0.0, 0.25)}
"""Examples are the strongest, and random ones of these parts of a latent's firings, by value."""


@dataclass(frozen=True)
class Card:
    """One latent. `examples` are contexts by part of its values; `raises` and `lowers` the tokens whose logits its
    decoder row moves most (empty where it does not write into the residual stream); `neighbours` the latents of most
    similar decoder rows, by cosine.
    """

    latent: int
    density: float
    largest: float
    examples: Mapping[str, tuple[Context, ...]]
    raises: tuple[tuple[str, float], ...]
    lowers: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    explanation: Explanation
    detection: Detection | None = None

    def row(self) -> dict[str, Any]:
        """As a row of a table."""
        found = self.explanation
        judged = {} if self.detection is None else {"judge": self.detection.balanced}
        return {
            "latent": self.latent,
            "density": self.density,
            "explanation": found.says,
            "score": found.score,
            "null": found.null,
            **judged,
            "raises": ", ".join(repr(token) for token, _ in self.raises[:3]),
        }


@dataclass(frozen=True)
class Cards:
    """Cards of some latents, with the density of all of them; `facts` say of what."""

    cards: tuple[Card, ...]
    density: tuple[float, ...]
    facts: Mapping[str, Any]

    def __getitem__(self, index: int) -> Card:
        return self.cards[index]

    def __iter__(self) -> Iterator[Card]:
        return iter(self.cards)

    def __len__(self) -> int:
        return len(self.cards)

    def rows(self) -> list[dict[str, Any]]:
        """One row a card."""
        return [card.row() for card in self.cards]

    def save(self, path: str | Path) -> Path:
        """Write one self-contained HTML page."""
        from patchclamp.evaluation.cards_page import page

        return page(self).save(path)

    def plot(self) -> Any:
        """The histogram of all latents' densities."""
        from patchclamp.evaluation.cards_page import histogram

        return histogram(self.density)

    def _repr_html_(self) -> str:
        from patchclamp.views import html_table

        return html_table(self.rows(), f"{len(self)} latents", limit=max(1, len(self)))


def cards(
    dictionary: Dictionary,
    model: "Model",
    corpus: Any,
    *,
    site: str | None = None,
    latents: Sequence[int] | None = None,
    examples: int = 5,
    judge: Judge | None = None,
    seed: int = 0,
) -> Cards:
    """Cards of `latents` (None: twenty that are active, drawn at random) on texts, labelled documents, or a store's
    rows.

    Documents with labelled spans let an explanation use the labels of tokens. With a `judge`, it explains each latent
    too, and its detection is scored. IndexError for a latent that there is not.
    """
    found = firings(dictionary, model, corpus, site=site)
    density = found.density()
    if latents is None:
        alive = (density > 0).nonzero().flatten()
        latents = sorted(alive[shuffled(len(alive), seed)[:20]].tolist())
    cosines = torch.nn.functional.normalize(dictionary.W_dec, dim=-1)
    made = []
    for latent in track(list(latents), "feature cards"):
        values = found.of(latent)[1]
        raises, lowers = logit_effects(dictionary, model, latent)
        near = cosines @ cosines[latent]
        near[latent] = -torch.inf
        best = near.topk(min(5, dictionary.width - 1))
        made.append(
            Card(
                latent,
                float(density[latent]),
                float(values.max()) if len(values) else 0.0,
                _examples(found, latent, examples, seed),
                raises,
                lowers,
                tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)),
                explain(found, latent, seed=seed),
                None if judge is None else detection(found, latent, judge, seed=seed),
            )
        )
    facts = {"model": model.name, "site": site or getattr(corpus, "site", ""), "tokens": len(found)}
    return Cards(tuple(made), tuple(density.tolist()), facts | {"latents": dictionary.width})


def logit_effects(
    dictionary: Dictionary, model: "Model", latent: int, count: int = 8
) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
    """The tokens whose logits the decoder row raises and lowers most, straight through the last norm at a fixed scale
    and the unembedding, against the mean over the vocabulary; in units of logits times the norm's scale. Nothing where
    there is no such way, or what the dictionary writes is not as wide as the residual stream.
    """
    anatomy, scale = model.anatomy, Site("final_norm_scale")
    if None in (anatomy.final_norm, anatomy.unembed) or scale not in anatomy.taps or dictionary.d_out != model.d_model:
        return (), ()
    view = anatomy.taps[scale].views[0]
    assert isinstance(view, NormScale)
    with torch.no_grad():
        norm = model.hf.get_submodule(anatomy.final_norm or "")
        gain, _ = norm_gain(norm, view, model.d_model, model.device, model.dtype)
        row = dictionary.W_dec[latent].to(gain)
        row = row - row.mean() if view.centred else row
        unembedding = model.weights.W_U
        effect: Float[Tensor, " vocab"] = ((row * gain).to(unembedding) @ unembedding).float().cpu()
        effect = effect - effect.mean()
    ends = [effect.topk(min(count, len(effect)), largest=largest) for largest in (True, False)]

    def shown(token: int) -> str:
        return str(token) if model.tokenizer is None else model.tokenizer.decode([token])

    raised, lowered = (
        tuple((shown(i), value) for i, value in zip(end.indices.tolist(), end.values.tolist(), strict=True))
        for end in ends
    )
    return raised, lowered


def _examples(found: Firings, latent: int, count: int, seed: int) -> dict[str, tuple[Context, ...]]:
    """Contexts by part of the latent's values, one of a document in each part."""
    rows, values = found.of(latent)
    order = values.argsort(stable=True)
    made = {}
    for name, (low, high) in QUANTILES.items():
        if name == "top":
            part = order.flip(0)
        else:
            part = order[int(low * len(order)) : int(high * len(order))]
            part = part[shuffled(len(part), seed + latent)]
        one_each: dict[int, int] = {}
        for row in rows[part].tolist():
            one_each.setdefault(int(found.document[row]), row)
            if len(one_each) == count:
                break
        made[name] = tuple(found.context(row, latent) for row in one_each.values())
    return made
