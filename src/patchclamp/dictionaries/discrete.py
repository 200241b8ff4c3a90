"""Discrete dictionaries: an activation becomes one integer.

    integers(sae, x)                       # the latent that says most, as one code; -1 where none is active
    book = codebook(x, size=64)            # vector quantisation: k-means centroids
    integers(book, x); book.decode(book.encode(x))
    only_in(positive, negative)            # for each node, how often its code occurs with the positives alone

Integers can be counted and compared as sets, which is how one small sparse autoencoder over all heads finds a circuit
from ten prompts without ablations (O'Neill and Bui 2024, arXiv:2405.12522).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.dictionary import Dictionary

WEIGHTS = "codebook.safetensors"


@dataclass(frozen=True, eq=False)
class Codebook:
    """Centroids; the code of a row is the nearest one, with value 1."""

    W_dec: Float[Tensor, "code d"]

    @property
    def width(self) -> int:
        """Number of codes."""
        return len(self.W_dec)

    def encode(self, x: Float[Tensor, "*row d"]) -> Codes:
        """The nearest centroid of each row: one index, with value 1."""
        if x.shape[-1] != self.W_dec.shape[1]:
            raise ValueError(f"x is {tuple(x.shape)}; this codebook reads rows of {self.W_dec.shape[1]}")
        # argmin |x - c|^2 without the term that is the same for all codes
        index = (x @ self.W_dec.T - (self.W_dec**2).sum(1) / 2).argmax(-1, keepdim=True)
        return Codes(index, torch.ones_like(index, dtype=x.dtype), self.width)

    def decode(self, codes: Codes) -> Float[Tensor, "*row d"]:
        """The centroid of each row."""
        return (self.W_dec[codes.indices] * codes.values[..., None]).sum(-2)

    def __call__(self, x: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
        return self.decode(self.encode(x))

    def save(self, folder: str | Path) -> Path:
        """Write `codebook.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"W_dec": self.W_dec.contiguous()}, folder / WEIGHTS)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Codebook":
        """Read what `save` wrote."""
        return cls(load_file(Path(folder) / WEIGHTS)["W_dec"])


def codebook(x: Float[Tensor, "row d"], size: int, *, seed: int = 0, starts: int = 4) -> Codebook:
    """A codebook of `size` centroids by k-means, the best of `starts` k-means++ starts."""
    from sklearn.cluster import KMeans

    if not 1 <= size <= len(x):
        raise ValueError(f"{size} codes for {len(x)} rows: expected 1 to {len(x)}")
    means = KMeans(size, n_init=starts, random_state=seed)  # pyright: ignore[reportArgumentType]
    found = means.fit(x.detach().cpu().double().numpy())
    return Codebook(torch.as_tensor(found.cluster_centers_).to(x))


def integers(dictionary: Dictionary | Codebook, x: Float[Tensor, "*row d"]) -> Int[Tensor, "*row"]:
    """One integer for each row: the latent whose share of the explanation is largest, -1 where none is active."""
    codes = dictionary.encode(x)
    share = codes.values.abs() * dictionary.W_dec.norm(dim=1)[codes.indices]
    best, place = share.max(-1)
    return codes.indices.gather(-1, place[..., None]).squeeze(-1).where(best > 0, -1)


def only_in(positive: Int[Tensor, "example node"], negative: Int[Tensor, "example node"]) -> Float[Tensor, " node"]:
    """For each node, the share of the positive examples whose code there occurs in no negative example.

    >>> only_in(torch.tensor([[1, 5], [2, 5]]), torch.tensor([[3, 5], [1, 6]])).tolist()
    [0.5, 0.0]
    """
    if positive.ndim != 2 or positive.shape[1:] != negative.shape[1:]:
        raise ValueError(f"positive {tuple(positive.shape)}, negative {tuple(negative.shape)}: the same nodes in both")
    shared = (positive[:, None] == negative[None]).any(1)
    return (~shared).double().mean(0).float()
