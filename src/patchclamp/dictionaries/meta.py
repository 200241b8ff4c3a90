"""Meta-dictionaries: are a dictionary's latents made of smaller parts? (Leask et al. 2025, arXiv:2502.04878)

found = decompose(dictionary, width=200, k=4)    # a BatchTopK dictionary of the decoder's rows
found.explained, found.random                    # share of their variance; the same for random rows
found.parts.encode(found.rows).of(3)             # which latents meta-latent 3 is part of
matches(found.parts, smaller)                    # is a part a latent of a smaller dictionary?
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.measures import fvu
from patchclamp.dictionaries.parts import BatchTopK
from patchclamp.dictionaries.train import train
from patchclamp.store.rows import held


@dataclass(frozen=True, eq=False)
class Decomposed:
    """The rows that were explained (of norm 1), the meta-dictionary, and how much of their variance it explains;
    `random` is that share where as many random directions were given to the same training.
    """

    rows: Float[Tensor, "latent d"]
    parts: Dictionary
    explained: float
    random: float


def decompose(
    dictionary: Dictionary | Float[Tensor, "latent d"],
    *,
    width: int,
    k: int = 4,
    epochs: int = 400,
    batch: int = 256,
    seed: int = 0,
    learning_rate: float | None = None,
    progress: bool = True,
) -> Decomposed:
    """A meta-dictionary of `width` parts, of which a decoder row has `k` on average, and its control.

    `dictionary` is one, or the rows themselves. Rows are brought to norm 1. ValueError where there are not more of them
    than parts: each could then have one of its own.
    """
    rows = dictionary.W_dec if isinstance(dictionary, Dictionary) else dictionary
    rows = torch.nn.functional.normalize(rows.detach().float(), dim=1)
    if len(rows) <= width:
        raise ValueError(f"{len(rows)} rows and {width} parts: a decomposition has fewer parts than rows")
    generator = torch.Generator().manual_seed((seed * 2654435761 + 0x3E7A) % 2**63)
    random = torch.nn.functional.normalize(torch.randn(rows.shape, generator=generator), dim=1).to(rows.device)
    found = []
    for some in (rows, random):
        parts = train(
            BatchTopK(k=k),
            _Scaled(some),
            width=width,
            tokens=epochs * len(rows),
            batch=min(batch, len(rows)),
            seed=seed,
            learning_rate=learning_rate,
            device=str(rows.device),
            progress=progress,
        )
        found.append((parts, 1 - fvu(some, parts(some))))
    (parts, explained), (_, control) = found
    return Decomposed(rows, parts, explained, control)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """Rows that come longer or shorter at random, by half: what is explained are directions from the origin.

    Sums of as many parts in each row would otherwise let all parts be moved by one vector, which the bias takes back.
    """

    tensor: Float[Tensor, "latent d"]

    @property
    def rows(self) -> int:
        return len(self.tensor)

    def batches(self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[Float[Tensor, "row d"]]:
        generator = torch.Generator().manual_seed(((seed << 32) + epoch * 2654435761 + start) % 2**63)
        for batch in held(self.tensor).batches(size, seed=seed, epoch=epoch, start=start):
            yield batch * (0.5 + torch.rand(len(batch), 1, generator=generator).to(batch))


def matches(parts: Dictionary, smaller: Dictionary) -> Float[Tensor, " part"]:
    """Of each part, the cosine with the most similar latent of a smaller dictionary of the same site."""
    if parts.d_out != smaller.d_out:
        raise ValueError(f"parts of {parts.d_out} dimensions, a dictionary of {smaller.d_out}: not of one site")
    unit = [torch.nn.functional.normalize(one.W_dec, dim=1) for one in (parts, smaller)]
    return (unit[0] @ unit[1].T).max(1).values
