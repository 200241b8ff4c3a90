"""ITDA: a dictionary whose atoms are activations that were seen, each with the token that it is of (arXiv:2505.17769).

    atoms = grow(store["resid_post.2"], k=40, threshold=0.3)     # one pass, no gradients
    codes = atoms.encode(x)                                      # matching pursuit: signed values
    atoms.sources[7]                                             # document and position of atom 7

    found = similarity(rows_a, rows_b, k=40, threshold=0.3)      # two models at the same tokens
    found.jaccard, found.shuffled                                # share of atoms in common, and by chance

A row becomes an atom where the atoms before it do not explain it. Two models that represent the same tokens alike keep
the same tokens, which is how ITDA compares them, beside CKA, SVCCA and relative representations.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.pursuit import matching_pursuit, steps
from patchclamp.views import track

LEAST, MOST = 16, 1024
"""Rows that are judged at once while a dictionary grows: few where most become atoms, many where none do."""


class ITDA(Dictionary):
    """A dictionary of unit-normed activations; its encoder is `k` steps of matching pursuit.

    `sources` are the document and the position that each atom is of. `save` writes the format of the authors, which
    holds all of it.
    """

    sources: Int[Tensor, "width 2"]

    def __init__(
        self,
        atoms: Float[Tensor, "width d"],
        sources: Int[Tensor, "width 2"],
        k: int,
        *,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if tuple(sources.shape) != (len(atoms), 2):
            raise ValueError(
                f"sources {tuple(sources.shape)} of {len(atoms)} atoms: expected a document and a position"
            )
        nothing = torch.zeros_like
        # Signed values, k of them: what a random dictionary beside it must choose too.
        super().__init__(
            atoms, nothing(atoms[:, 0]), atoms, nothing(atoms[0]), select="absolute_topk", k=k, metadata=metadata
        )
        self.register_buffer("sources", sources.detach().clone().long())

    def encode(self, x: Float[Tensor, "*row d_in"]) -> Codes:
        """Which atoms each row is made of, and how much of each, with signs (pursuit.py)."""
        flat = self._flat(x)
        codes = matching_pursuit(flat.reshape(-1, self.d_in), self.W_dec, self.k or 1).codes
        shape = (*flat.shape[:-1], codes.indices.shape[-1])
        return Codes(codes.indices.reshape(shape), codes.values.reshape(shape), self.width)

    def save(self, folder: str | Path, format: str = "itda") -> Path:
        """Write a folder in the authors' format; ValueError for any other: none else has such an encoder."""
        if format != "itda":
            raise ValueError(f"{format} has no dictionary with matching pursuit: {self.extra_repr()}")
        return super().save(folder, format)

    def extra_repr(self) -> str:
        return f"{self.shape_in} -> {self.width} atoms (matching pursuit, k={self.k}) -> {self.shape_out}"


def grow(
    data: Any,
    *,
    k: int = 40,
    threshold: float = 0.3,
    most: int | None = None,
    tokens: int | None = None,
    labels: Int[Tensor, "row 2"] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ITDA:
    """One pass over `data`, in its order: a row whose direction the atoms so far miss by more than `threshold` becomes
    an atom, until there are `most` of them or `tokens` rows were read.

    What is missed is |x / |x| - y / |y||^2 = 2 (1 - cosine) for the explanation y, between 0 and 4 (the authors' loss
    is this over d). Rows are judged one after the other, each with the atoms of all before it, so that the result does
    not depend on how they are cut into batches.

    `data` are rows of a store, in the order in which they are stored; a tensor [row, d], with `labels` (document and
    position) or numbered; a tensor [document, position, d]; or anything with `stream` or `batches`, whose rows are
    numbered in the order of `seed`: two models over one corpus get the same numbers for the same tokens. Rows of zeros
    have no direction and are passed over. ValueError on numbers that are not finite.
    """
    if not 0 < threshold < 4 or k < 1 or (most is not None and most < 1) or (tokens is not None and tokens < 1):
        raise ValueError(
            f"threshold={threshold}, k={k}, most={most}, tokens={tokens}: expected a threshold between 0 and 4, and "
            "positive numbers"
        )
    growing: _Growing | None = None
    pieces = _labelled(data, labels, seed)
    for ids, rows in track(pieces, "atoms") if progress else pieces:
        left = None if tokens is None else tokens - (growing.seen if growing else 0)
        ids, rows = ids[:left], rows[:left].detach()
        if not bool(rows.isfinite().all()):
            raise ValueError(f"rows {ids[~rows.isfinite().all(1)][:4].tolist()} have numbers that are not finite")
        growing = growing or _Growing(rows, k, threshold, most)
        growing.read(ids, rows)
        if growing.full or growing.seen == tokens:
            break
    if growing is None or not growing.count:
        raise ValueError("there was no row to make an atom of")
    metadata = {"k": k, "loss_threshold": threshold / growing.atoms.shape[1], "max_dict_size": most or 0, "seed": seed}
    chosen = slice(growing.count)
    return ITDA(growing.atoms[chosen], growing.sources[chosen], min(k, growing.count), metadata=metadata)


class _Growing:
    """The atoms so far, in tensors with room for more."""

    def __init__(self, like: Float[Tensor, "row d"], k: int, threshold: float, most: int | None) -> None:
        self.k, self.threshold, self.most = k, threshold, most
        self.atoms = like.new_empty(256, like.shape[1])
        self.sources = torch.empty(256, 2, dtype=torch.long)
        self.count = self.seen = 0
        self.size = LEAST

    @property
    def full(self) -> bool:
        return self.most is not None and self.count >= self.most

    def read(self, ids: Int[Tensor, "row 2"], rows: Float[Tensor, "row d"]) -> None:
        norms = rows.norm(dim=1, keepdim=True)
        keep = (norms > 0).squeeze(1)
        self.seen += len(rows)
        ids, unit = ids[keep], (rows / norms)[keep]
        start = 0
        while start < len(unit) and not self.full:
            block = unit[start : start + self.size]
            missed = (self._missed(block) > self.threshold).nonzero()
            if len(missed):
                first = start + int(missed[0])
                self._add(unit[first], ids[first])
                self.size = max(LEAST, int(missed[0]) + 1)
                start = first + 1
            else:
                start += len(block)
                self.size = min(MOST, 2 * self.size)

    def _missed(self, unit: Float[Tensor, "row d"]) -> Float[Tensor, " row"]:
        """2 (1 - cosine) of each unit row with what the atoms explain of it; 2 where they explain nothing."""
        if not self.count:
            return unit.new_full((len(unit),), 2.0)
        explained = unit - steps(unit, self.atoms[: self.count], min(self.k, self.count))[2]
        return 2 - 2 * torch.nn.functional.cosine_similarity(unit, explained, dim=1)

    def _add(self, atom: Float[Tensor, " d"], source: Int[Tensor, " 2"]) -> None:
        if self.count == len(self.atoms):
            self.atoms = torch.cat([self.atoms, torch.empty_like(self.atoms)])
            self.sources = torch.cat([self.sources, torch.empty_like(self.sources)])
        self.atoms[self.count], self.sources[self.count] = atom, source
        self.count += 1


def _labelled(data: Any, labels: Tensor | None, seed: int) -> Iterator[tuple[Int[Tensor, "row 2"], Tensor]]:
    """(document, position) and activation of each row, in the order of the data."""
    if isinstance(data, Tensor):
        yield from _held(data, labels)
        return
    if labels is not None:
        raise ValueError("labels= go with a tensor; other data have labels of their own")
    if hasattr(data, "labelled"):
        for about, rows in data.labelled(MOST):
            yield torch.stack([about.document, about.position], 1).long(), rows
        return
    batches: Iterable[Tensor]
    if hasattr(data, "stream"):
        batches = (batch.activations for batch in data.stream(MOST, seed=seed))
    elif hasattr(data, "batches"):
        batches = data.batches(MOST, seed=seed)
    else:
        raise TypeError(
            f"data of type {type(data).__name__}: expected a tensor, rows of a store, or something with `stream` or "
            "`batches`"
        )
    seen = 0
    for rows in batches:
        if not isinstance(rows, Tensor) or rows.ndim != 2:
            raise ValueError("atoms are of one site of one model: give rows [row, d], not pairs or several models")
        yield numbered(len(rows), seen), rows
        seen += len(rows)


def _held(data: Tensor, labels: Tensor | None) -> list[tuple[Int[Tensor, "row 2"], Tensor]]:
    if data.ndim == 3:
        if labels is not None:
            raise ValueError("a tensor [document, position, d] has its labels already: give no labels=")
        labels = torch.cartesian_prod(torch.arange(data.shape[0]), torch.arange(data.shape[1]))
        data = data.flatten(0, 1)
    if data.ndim != 2 or not data.is_floating_point():
        raise ValueError(f"data are floating-point rows [row, d], not {data.dtype} {list(data.shape)}")
    labels = numbered(len(data)) if labels is None else labels
    if tuple(labels.shape) != (len(data), 2):
        raise ValueError(f"labels {list(labels.shape)} of {len(data)} rows: a document and a position for each")
    return list(zip(labels.split(MOST), data.split(MOST), strict=True))


def numbered(rows: int, first: int = 0) -> Int[Tensor, "row 2"]:
    """Labels of rows that have none: the number of the row for the document, position 0."""
    return torch.stack([torch.arange(first, first + rows), torch.zeros(rows, dtype=torch.long)], 1)


# Two models, compared


def jaccard(a: ITDA, b: ITDA) -> float:
    """Atoms of the same document and position over atoms of either; 1 where both have kept the same tokens."""
    mine, theirs = (set(map(tuple, one.sources.tolist())) for one in (a, b))
    return len(mine & theirs) / len(mine | theirs)


@dataclass(frozen=True)
class Similarity:
    """Jaccard similarity of two dictionaries' atoms, and what remains of it by chance."""

    jaccard: float
    shuffled: float
    """the same where the second model's rows come in random order: which places of the stream give atoms whatever they
    hold, as the first ones do"""


def similarity(
    a: Float[Tensor, "row d"], b: Float[Tensor, "row e"], *, k: int = 40, threshold: float = 0.3, seed: int = 0
) -> Similarity:
    """How alike two models represent the same tokens, row by row: the Jaccard similarity of the atoms that they keep.

    ValueError where there are not as many rows of both: the same tokens in the same order are what is compared.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} rows of one model and {len(b)} of the other: record both at the same tokens")
    order = torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))
    mine, theirs, shuffled = (grow(x, k=k, threshold=threshold, progress=False) for x in (a, b, b[order]))
    return Similarity(jaccard(mine, theirs), jaccard(mine, shuffled))


def linear_cka(x: Float[Tensor, "row d"], y: Float[Tensor, "row e"]) -> float:
    """Linear centred kernel alignment: |Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|), Frobenius norms (arXiv:1905.00414)."""
    x, y = (part.double() - part.double().mean(0) for part in (x, y))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def svcca(x: Float[Tensor, "row d"], y: Float[Tensor, "row e"], explained: float = 0.99) -> float:
    """Mean canonical correlation between the principal components that hold `explained` of each variance
    (arXiv:1706.05806).
    """
    bases = []
    for part in (x, y):
        left, singular, _ = torch.linalg.svd(part.double() - part.double().mean(0), full_matrices=False)
        share = (singular**2).cumsum(0) / (singular**2).sum()
        bases.append(left[:, : int((share < explained).sum()) + 1])
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).clamp_max(1).mean())


def relative_similarity(
    x: Float[Tensor, "row d"], y: Float[Tensor, "row e"], anchors: int = 300, seed: int = 0
) -> float:
    """Mean cosine between the rows' relative representations: their cosines with `anchors` of the rows, which are the
    same tokens in both models (arXiv:2209.15430).
    """
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:anchors]
    unit = [torch.nn.functional.normalize(part.double(), dim=1) for part in (x, y)]
    relative = [rows @ rows[chosen].T for rows in unit]
    return float(torch.nn.functional.cosine_similarity(*relative, dim=1).mean())


def layer_matching(table: Float[Tensor, "layer layer"]) -> float:
    """Share of layers whose most similar layer of the other model is the same one, from both sides."""
    own = torch.arange(len(table))
    return float(torch.cat([table.argmax(0) == own, table.argmax(1) == own]).double().mean())
