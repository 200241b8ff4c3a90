"""Which latents of a crosscoder are one model's alone, and which only look so (Minder et al. 2025, arXiv:2504.02922).

    found = latent_scaling(crosscoder, pairs)             # activations [row, model, d], base first
    found.norm_score                                      # 1: the tuned model's decoder alone; 0: the base's
    found.nu_error, found.nu_reconstruction               # how much of the latent the base model has all the same
    found.specific()                                      # by the norms, and not refuted by either

A sparse crosscoder makes latents look specific that are not: a weak share of the base model is shrunk to nothing
(complete shrinkage), or is explained by other latents (decoupling). Scaling asks the base model's activations directly:
beta(y) = argmin over b of |y - b f d|^2 = sum_i f_i <d, y_i> / (|f|^2 |d|^2), d being the tuned decoder row.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.store.rows import held


def norm_scores(crosscoder: Dictionary, *, base: int = 0, tuned: int = 1) -> Float[Tensor, " width"]:
    """(1 + (|d_tuned| - |d_base|) / max) / 2 of each latent: 0 the base model's alone, 0.5 shared, 1 the tuned's.

    NaN where both are zero. ValueError unless several models are explained.
    """
    rows = _decoders(crosscoder, base, tuned)
    norms = rows[:, [base, tuned]].norm(dim=-1)
    return (1 + (norms[:, 1] - norms[:, 0]) / norms.max(1).values) / 2


def beta(
    codes: Codes, directions: Float[Tensor, "width d"], targets: Float[Tensor, "row d"]
) -> Float[Tensor, " width"]:
    """The scale at which each latent, along its direction, explains the targets best; float64, NaN where never active.

    >>> codes = Codes(torch.tensor([[0], [0]]), torch.tensor([[1.0], [2.0]]), width=1)
    >>> beta(codes, torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 5.0], [2.0, 5.0]]))
    tensor([0.5000], dtype=torch.float64)
    """
    dots, squares = _sums(codes, directions, targets)
    return dots / (squares * (directions.double() ** 2).sum(-1))


@dataclass(frozen=True, eq=False)
class Scaling:
    """What latent scaling says of each latent. NaN where a latent was never active.

    norm_score          1 the tuned model's, 0 the base's
    nu_error            beta of the base's error, with the latent's own share put back, over the tuned model's: high
                        where the base model has what the latent says, and its decoder was shrunk
    nu_reconstruction   beta of the base's reconstruction over the tuned's: high where other latents say it for the base
    null_error, null_reconstruction   the same with the base's rows exchanged: what no relation at all would give
    active              rows in which the latent was active
    """

    norm_score: Float[Tensor, " width"]
    nu_error: Float[Tensor, " width"]
    nu_reconstruction: Float[Tensor, " width"]
    null_error: Float[Tensor, " width"]
    null_reconstruction: Float[Tensor, " width"]
    active: Int[Tensor, " width"]

    def claimed(self, norm: float = 0.9) -> Int[Tensor, " latent"]:
        """The latents that the norms alone call the tuned model's."""
        return ((self.norm_score > norm) & (self.active > 0)).nonzero().flatten()

    def specific(self, norm: float = 0.9, error: float = 0.2, reconstruction: float = 0.5) -> Int[Tensor, " latent"]:
        """Those of them that neither ratio refutes; thresholds as in the paper."""
        claimed = self.claimed(norm)
        kept = (self.nu_error[claimed] < error) & (self.nu_reconstruction[claimed] < reconstruction)
        return claimed[kept]

    def verdicts(self, norm: float = 0.9, error: float = 0.2, reconstruction: float = 0.5) -> list[str]:
        """ "dead", "tuned", "shrunk" or "decoupled" (claimed and refuted), "shared", "base" or "between", by latent."""
        said = []
        for score, nu, other, active in zip(
            self.norm_score.tolist(),
            self.nu_error.tolist(),
            self.nu_reconstruction.tolist(),
            self.active.tolist(),
            strict=True,
        ):
            if not active:
                said.append("dead")
            elif score > norm:
                said.append("shrunk" if not nu < error else "decoupled" if not other < reconstruction else "tuned")
            elif score < 1 - norm:
                said.append("base")
            else:
                said.append("shared" if 0.4 <= score <= 0.6 else "between")
        return said


@torch.no_grad()
def latent_scaling(
    crosscoder: Dictionary,
    data: Any,
    *,
    rows: int | None = None,
    base: int = 0,
    tuned: int = 1,
    batch: int = 4096,
    seed: int = 0,
) -> Scaling:
    """Norm scores, and both ratios of every latent, in one pass over the data (the first `rows` of it).

    `data` are activations [row, model, d], a paired store (`pc.store.paired`), or anything with `batches` or a
    `stream`. Sums are float64 and over active latents alone. ValueError where data without an end come without `rows`.
    """
    decoders = _decoders(crosscoder, base, tuned).double()
    along = decoders[:, tuned]
    dots = torch.zeros(2, 2, crosscoder.width, dtype=torch.double, device=along.device)  # [model, target]
    nulls = torch.zeros(2, crosscoder.width, dtype=torch.double, device=along.device)
    squares = torch.zeros(crosscoder.width, dtype=torch.double, device=along.device)
    active = torch.zeros(crosscoder.width, dtype=torch.long, device=along.device)
    for x in _batches(data, batch, rows, seed):
        if len(x) < 2:
            continue  # one row has no other to be exchanged with
        codes = crosscoder.encode(x)
        explained = crosscoder.decode(codes).double()
        error = x.double() - explained
        for place, model in enumerate((base, tuned)):
            for which, target in enumerate((error, explained)):
                dots[place, which] += _sums(codes, along, target[:, model])[0]
        for which, target in enumerate((error, explained)):
            nulls[which] += _sums(codes, along, target[:, base].roll(1, 0))[0]
        squares += _squares(codes)
        active += codes.counts()
    own = torch.stack([squares * (along * decoders[:, model]).sum(-1) for model in (base, tuned)])
    dots[:, 0] += own  # the latent's own share, put back into the error
    nu = dots[0] / dots[1]
    nu_error, nu_reconstruction = torch.where(active > 0, nu, torch.nan)
    null_error, null_reconstruction = torch.where(active > 0, nulls / dots[1], torch.nan)
    scores = norm_scores(crosscoder, base=base, tuned=tuned)
    return Scaling(scores, nu_error, nu_reconstruction, null_error, null_reconstruction, active)


def together(data: Any) -> "Together":
    """Several sites of a store, or of two (`pc.store.paired`), as rows [row, site, d]: what crosscoders learn from.

    train(BatchTopK(k=100), together(paired(base.rows("resid_post.2"), tuned.rows("resid_post.2"))), width=4096)
    """
    widths = set(data.d)
    if len(widths) > 1:
        raise ValueError(f"sites of widths {tuple(data.d)} do not stack: a crosscoder reads several of one width")
    return Together(data)


@dataclass(frozen=True, eq=False)
class Together:
    """Paired rows, whose batches are one tensor [row, site, d]."""

    pairs: Any

    @property
    def rows(self) -> int | None:
        """Rows in an epoch; None where they never end."""
        return self.pairs.rows

    def batches(
        self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[Float[Tensor, "row site d"]]:
        """The pairs' batches, stacked."""
        for parts in self.pairs.batches(size, seed=seed, epoch=epoch, start=start):
            yield torch.stack(parts, 1)


def _decoders(crosscoder: Dictionary, base: int, tuned: int) -> Float[Tensor, "width model d"]:
    if len(crosscoder.shape_out) != 2:
        raise ValueError(f"norms of several models are a crosscoder's: {crosscoder.extra_repr()}")
    models = crosscoder.shape_out[0]
    if base == tuned or not all(0 <= model < models for model in (base, tuned)):
        raise ValueError(f"base={base}, tuned={tuned}: expected two of the models 0 to {models - 1}")
    return crosscoder.W_dec.unflatten(1, crosscoder.shape_out)


def _sums(codes: Codes, directions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For each latent the sum of f <d, y>, and of f^2, over its active rows."""
    row, column = (codes.values != 0).nonzero(as_tuple=True)
    latent, value = codes.indices[row, column], codes.values[row, column].double()
    dots = torch.zeros(codes.width, dtype=torch.double, device=value.device)
    step = max(1, 2**22 // directions.shape[-1])  # pairs whose vectors are held at once
    for part in range(0, len(row), step):
        r, j, f = (t[part : part + step] for t in (row, latent, value))
        dots.index_add_(0, j, f * (directions[j].double() * targets[r].double()).sum(-1))
    return dots, _squares(codes)


def _squares(codes: Codes) -> Float[Tensor, " width"]:
    zeros = torch.zeros(codes.width, dtype=torch.double, device=codes.values.device)
    return zeros.index_add_(0, codes.indices.flatten(), codes.values.flatten().double() ** 2)


def _batches(data: Any, size: int, rows: int | None, seed: int) -> Iterable[Float[Tensor, "row model d"]]:
    """Batches [row, model, d], `rows` rows in all."""
    if isinstance(data, Tensor):
        shape = data.shape[1:]
        given = (flat.unflatten(1, shape) for flat in held(data.flatten(1)).batches(size, seed=seed))
        known: int | None = len(data)
    elif hasattr(data, "batches"):
        given, known = data.batches(size, seed=seed), data.rows
    else:
        given, known = (batch.activations for batch in data.stream(size, seed=seed)), None
    if rows is None and known is None:
        raise ValueError("these data have no end: give rows=, how many to measure on")
    left = known if rows is None else rows
    for batch in given:
        x = torch.stack(batch, 1) if isinstance(batch, tuple) else batch
        yield x[: int(left or 0)]
        left = int(left or 0) - len(x)
        if left <= 0:
            return
