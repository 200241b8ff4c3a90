"""Where in a text each latent is active: `found = firings(dictionary, model, texts, site="resid_post.2")`.

    rows, values = found.of(17)                # where latent 17 is active, and how much
    found.context(int(rows[0]))                # the tokens around it

One row is one token. Values are kept where they are not zero, sorted by latent: of a text of n tokens, n x L0 numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.dictionaries import Dictionary

if TYPE_CHECKING:
    from patchclamp.model import Model


@dataclass(frozen=True)
class Context:
    """Some tokens in a row, with a latent's value at each; `at` is the one that it is about."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    at: int

    @property
    def active(self) -> bool:
        """Whether the latent is active on any of them."""
        return any(value != 0 for value in self.values)

    def bare(self) -> "Context":
        """The same tokens without the values: what a judge is asked about."""
        return Context(self.tokens, (0.0,) * len(self.tokens), self.at)

    def __str__(self) -> str:
        """The text, with the strongest tokens between angle brackets."""
        top = max(self.values, default=0.0)
        marked = (
            f"⟨{t}⟩" if value > top / 2 and value > 0 else t for t, value in zip(self.tokens, self.values, strict=True)
        )
        return "".join(marked)


@dataclass(frozen=True, eq=False)
class Firings:
    """Tokens in order, and the latents that are active on each.

    token, document, position  of each row; a document's rows stand together, in order
    row, value                 of each firing, sorted by latent; those of latent j are start[j] to start[j + 1]
    labels                     what holds of each row, if it is known, [row, label], under label_names
    """

    token: Int[Tensor, " row"]
    document: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    row: Int[Tensor, " firing"]
    value: Float[Tensor, " firing"]
    start: Int[Tensor, " width_and_one"]
    show: Callable[[int], str]
    labels: Bool[Tensor, "row label"] | None = None
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.token)

    @property
    def width(self) -> int:
        return len(self.start) - 1

    def of(self, latent: int) -> tuple[Int[Tensor, " some"], Float[Tensor, " some"]]:
        """Rows in which the latent is active, ascending, and its values there."""
        if not 0 <= latent < self.width:
            raise IndexError(f"latent {latent} of a dictionary of {self.width}: 0 to {self.width - 1}")
        part = slice(int(self.start[latent]), int(self.start[latent + 1]))
        return self.row[part], self.value[part]

    def density(self) -> Float[Tensor, " width"]:
        """In what share of the tokens each latent is active."""
        return self.start.diff() / max(1, len(self))

    def values(self, latent: int) -> Float[Tensor, " row"]:
        """The latent's value in every row."""
        rows, values = self.of(latent)
        return torch.zeros(len(self)).index_put((rows,), values)

    def context(self, row: int, latent: int | None = None, before: int = 8, after: int = 4) -> Context:
        """The tokens around a row, within its document, with the values of a latent."""
        first, last = max(0, row - before), min(len(self) - 1, row + after)
        some = [i for i in range(first, last + 1) if self.document[i] == self.document[row]]
        values = [0.0] * len(some)
        if latent is not None:
            rows, found = self.of(latent)
            ends = torch.searchsorted(rows, torch.tensor([some[0], some[-1] + 1])).tolist()
            for i, value in zip(rows[slice(*ends)].tolist(), found[slice(*ends)].tolist(), strict=True):
                values[i - some[0]] = value
        return Context(tuple(self.show(int(self.token[i])) for i in some), tuple(values), some.index(row))


def firings(
    dictionary: Dictionary,
    model: "Model",
    corpus: Any,
    *,
    site: str | None = None,
    batch: int = 64,
) -> Firings:
    """Encode a corpus: texts, documents with labelled spans, or the rows of one site of a store.

    The first token of each text (a beginning-of-sequence token) is left out. `site` is needed for texts; a store knows
    its own. ValueError without it, or where there is no text.
    """
    if hasattr(corpus, "labelled"):
        return _of_store(dictionary, model, corpus)
    documents = list(corpus)
    if not documents or site is None:
        raise ValueError("feature cards need texts, and the site that the dictionary reads: site='resid_post.2'")
    texts = [document if isinstance(document, str) else document.text for document in documents]
    pieces: list[tuple[Tensor, ...]] = []
    latent, row, value, count = [], [], [], 0
    for first in range(0, len(texts), batch):
        run = model.run(texts[first : first + batch], record=site, stop=True)
        assert run.tokens is not None
        ids, mask = run.tokens.ids.cpu(), run.mask.cpu().clone()
        mask[:, 0] = False
        where = mask.nonzero()
        pieces.append((ids[mask], where[:, 0] + first, where[:, 1]))
        found = _active(dictionary, run[site][mask.to(run[site].device)])
        for kept, each in zip((latent, row, value), (found[0], found[1] + count, found[2]), strict=True):
            kept.append(each)
        count += len(where)
    token, document, position = (torch.cat(some) for some in zip(*pieces, strict=True))
    labels, names = _labels(documents, model, document, position)
    return _sorted(dictionary, model, token, document, position, latent, row, value, labels, names)


def _of_store(dictionary: Dictionary, model: "Model", rows: Any) -> Firings:
    pieces, latent, row, value, count = [], [], [], [], 0
    for labels, x in rows.labelled(8192):
        pieces.append((labels.token.long(), labels.document.long(), labels.position.long()))
        found = _active(dictionary, x)
        for kept, each in zip((latent, row, value), (found[0], found[1] + count, found[2]), strict=True):
            kept.append(each)
        count += len(x)
    token, document, position = (torch.cat(some).cpu() for some in zip(*pieces, strict=True))
    order = torch.argsort(document * (int(position.max()) + 1) + position, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    row = [place[some] for some in row]
    return _sorted(dictionary, model, token[order], document[order], position[order], latent, row, value, None, ())


@torch.no_grad()
def _active(dictionary: Dictionary, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, row and value of each firing."""
    codes = dictionary.encode(x.to(dictionary.W_dec))
    row, column = (codes.values != 0).nonzero(as_tuple=True)
    return codes.indices[row, column].cpu(), row.cpu(), codes.values[row, column].float().cpu()


def _sorted(
    dictionary: Dictionary,
    model: "Model",
    token: Tensor,
    document: Tensor,
    position: Tensor,
    latent: list[Tensor],
    row: list[Tensor],
    value: list[Tensor],
    labels: Tensor | None,
    names: tuple[str, ...],
) -> Firings:
    latents, rows, values = torch.cat(latent), torch.cat(row), torch.cat(value)
    order = torch.argsort(latents * len(token) + rows)
    start = torch.zeros(dictionary.width + 1, dtype=torch.long)
    start[1:] = torch.bincount(latents, minlength=dictionary.width).cumsum(0)

    def show(token: int) -> str:
        return str(token) if model.tokenizer is None else model.tokenizer.decode([token])

    return Firings(token, document, position, rows[order], values[order], start, show, labels, names)


def _labels(
    documents: Sequence[Any], model: "Model", document: Tensor, position: Tensor
) -> tuple[Tensor | None, tuple[str, ...]]:
    """What the documents' spans say of each token, where they have spans."""
    if not all(hasattr(one, "spans") for one in documents):
        return None, ()
    from patchclamp.organisms.tales.labels import token_labels

    said = [token_labels(one, model.tokenizer) for one in documents]
    rows = [set(said[d][p].names()) for d, p in zip(document.tolist(), position.tolist(), strict=True)]
    names = tuple(sorted(set().union(*rows)))
    place = {name: i for i, name in enumerate(names)}
    table = torch.zeros(len(rows), len(names), dtype=torch.bool)
    for i, row in enumerate(rows):
        table[i, [place[name] for name in row]] = True
    return table, names
