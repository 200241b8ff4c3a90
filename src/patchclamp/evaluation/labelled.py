"""Activations of which it is known what holds: rows, concepts, and in which rows each concept holds.

data = Labelled.planted(world.sample(20_000), world.truth())               # concepts: the planted features
data = Labelled.of_text(model, "resid_post.2", documents, concepts="letter:")   # concepts: labels of tokens
data = Labelled(x, holds, names)                                           # your own
train, test = data.halves(seed=0)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.dictionaries import Dictionary

if TYPE_CHECKING:
    from patchclamp.model import Model
    from patchclamp.organisms.planted import Batch, PlantedTruth

FEWEST = 20
"""Rows with a concept, and rows without, that a measure needs in each half."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Rows of activations, and what holds of each.

    `groups` are what must not be torn apart when rows are split: the document of each row. Where the truth is planted,
    `directions` are the concepts' own and `parents` say which concept is implied by which (-1: none).
    ValueError where shapes do not agree.
    """

    x: Float[Tensor, "row d"]
    holds: Bool[Tensor, "row concept"]
    names: tuple[str, ...]
    groups: Int[Tensor, " row"] | None = None
    directions: Float[Tensor, "concept d"] | None = None
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.x.ndim != 2 or self.holds.shape != (len(self.x), len(self.names)) or self.holds.dtype != torch.bool:
            raise ValueError(
                f"x {tuple(self.x.shape)}, holds {tuple(self.holds.shape)} of {self.holds.dtype} and {len(self.names)} "
                "names: expected [row, d], booleans [row, concept], one name a concept"
            )
        if self.groups is not None and self.groups.shape != (len(self.x),):
            raise ValueError(f"groups {tuple(self.groups.shape)}: expected one number for each of {len(self.x)} rows")

    @classmethod
    def planted(
        cls, batch: "Batch", truth: "PlantedTruth", features: Sequence[int] | None = None, model: int = 0
    ) -> "Labelled":
        """Planted activations; concepts are the features (all, or those given), with their directions and parents."""
        chosen = list(range(batch.features)) if features is None else list(features)
        x = batch.activations if batch.activations.ndim == 2 else batch.activations[:, model]
        place = {feature: i for i, feature in enumerate(chosen)}
        return cls(
            x,
            batch.fires[:, chosen],
            tuple(f"{truth.labels[feature]}.{feature}" for feature in chosen),
            directions=truth.directions[model, chosen],
            parents=tuple(place.get(truth.parents[feature], -1) for feature in chosen),
        )

    @classmethod
    def of_text(
        cls,
        model: "Model",
        site: str,
        documents: Sequence[Any],
        concepts: str | Sequence[str],
        *,
        fewest: int = 2 * FEWEST,
        batch: int = 128,
    ) -> "Labelled":
        """One row for each token but the first of labelled documents, `pc.organisms.truth("tales").documents(n)`.

        `concepts` are names of labels ("letter:s", "pos:noun", "language:spanish"), or what such names begin with;
        those that hold of fewer than `fewest` tokens are left out. ValueError where none is left.
        """
        from patchclamp.organisms.tales.labels import token_labels

        wanted = (concepts,) if isinstance(concepts, str) else tuple(concepts)
        rows, labels, groups = [], [], []
        for first in range(0, len(documents), batch):
            some = documents[first : first + batch]
            run = model.run([document.text for document in some], record=site, stop=True)
            mask = run.mask.clone()
            mask[:, 0] = False
            rows.append(run[site][mask].float())
            for number, document in enumerate(some):
                own = token_labels(document, model.tokenizer)[1:]
                labels += [{name for name in one.names() if name.startswith(wanted)} for one in own]
                groups += [first + number] * len(own)
        found = sorted(set().union(*labels))
        holds = torch.tensor([[name in one for name in found] for one in labels], dtype=torch.bool)
        counts = holds.sum(0)
        kept = ((counts >= fewest) & (len(labels) - counts >= fewest)).nonzero().flatten().tolist()
        if not kept:
            said = ", ".join(f"{name} ({int(n)})" for name, n in zip(found, counts, strict=True)) or "none"
            raise ValueError(f"no label that begins with {wanted} holds of {fewest} tokens: {said}")
        return cls(torch.cat(rows), holds[:, kept], tuple(found[i] for i in kept), groups=torch.tensor(groups))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Int[Tensor, " some"] | Bool[Tensor, " row"] | slice) -> "Labelled":
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, x=self.x[rows], holds=self.holds[rows], groups=groups)

    def only(self, concepts: Sequence[int]) -> "Labelled":
        """Some of the concepts."""
        chosen = list(concepts)
        place = {concept: i for i, concept in enumerate(chosen)}
        return replace(
            self,
            holds=self.holds[:, chosen],
            names=tuple(self.names[i] for i in chosen),
            directions=None if self.directions is None else self.directions[chosen],
            parents=tuple(place.get(self.parents[i], -1) for i in chosen) if self.parents else (),
        )

    def halves(self, seed: int = 0) -> tuple["Labelled", "Labelled"]:
        """A random half to learn on and the other to test on; rows of one group are on one side."""
        groups = torch.arange(len(self)) if self.groups is None else self.groups.unique(return_inverse=True)[1]
        count = int(groups.max()) + 1
        first = torch.zeros(count, dtype=torch.bool)
        first[shuffled(count, seed)[: count // 2]] = True
        return self[first[groups]], self[~first[groups]]


def shuffled(n: int, seed: int) -> Int[Tensor, " n"]:
    """A random order of n things."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 2654435761 + 0xEA1) % 2**63))


@torch.no_grad()
def latents(dictionary: Dictionary, x: Float[Tensor, "row d"]) -> Float[Tensor, "row width"]:
    """Every latent's value times the norm of its decoder row: how far it moves the activation.

    So that a latent that is twice as large with a decoder row half as long is the same latent to every measure.
    """
    return dictionary.encode(x).dense() * dictionary.W_dec.norm(dim=-1)


def moved(
    dictionary: Dictionary,
    x: Float[Tensor, "row d"],
    now: Float[Tensor, "row width"],
    which: Int[Tensor, " some"],
    to: float | Float[Tensor, " some"] = 0.0,
) -> Float[Tensor, "row d"]:
    """`x` with the latents `which` at `to` where they are active; the dictionary's error stays.

    `now` are the latents of `x`, and `to` is in their units: those of `latents`.
    """
    before = now[:, which]
    change = torch.where(before != 0, to - before, 0.0)
    return x + change @ torch.nn.functional.normalize(dictionary.W_dec[which], dim=-1)
