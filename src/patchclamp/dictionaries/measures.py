"""How good a dictionary is: of activations alone (fvu, l0, shrinkage, density), and against features that are known.

    measures.fvu(x, dictionary(x))                               # 0: all explained; 1: as good as the mean
    measures.recovered(dictionary.W_dec, truth_directions)       # share of true features with a latent of cosine > 0.9
    measures.report(dictionary, x)                               # the usual ones, with their controls beside them
    measures.report([first, second, third], x)                   # of several seeds: means, and "error" the deviations

Every number needs its control: a random dictionary, principal components and raw units, as many of them as latents are
active, are what a report puts beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.dictionary import Dictionary


def fvu(x: Float[Tensor, "row d"], explained: Float[Tensor, "row d"]) -> float:
    """Fraction of variance unexplained: the summed squared error over the summed squared distance from the mean.

    >>> x = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    >>> fvu(x, x.mean(0).expand(2, 2))
    1.0
    """
    x, explained = x.double().flatten(1), explained.double().flatten(1)
    if len(x) < 2:
        raise ValueError(f"the variance of {len(x)} rows is not known: give at least 2")
    return float(((x - explained) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def shrinkage(x: Float[Tensor, "row d"], explained: Float[Tensor, "row d"]) -> float:
    """Relative reconstruction bias: gamma = E|y|^2 / E[y . x]; 1 is unbiased, less is too small.

    (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 10.) It is the factor g for which y / g is nearest to x.
    """
    x, explained = x.double().flatten(1), explained.double().flatten(1)
    return float((explained**2).sum() / (explained * x).sum())


def density(codes: Codes) -> Float[Tensor, " width"]:
    """In what share of the rows each latent is active; 0 is dead."""
    return codes.counts() / codes.indices[..., 0].numel()


def decoder_cosines(dictionary: Dictionary) -> Float[Tensor, " width"]:
    """For each latent the cosine of its decoder row with the most similar other one."""
    rows = _unit(dictionary.W_dec)
    cosines = rows @ rows.T
    return cosines.fill_diagonal_(-torch.inf).max(1).values


@dataclass(frozen=True)
class Match:
    """Which latent is which true feature: one to one, so that the summed cosine is greatest."""

    latent: Int[Tensor, " feature"]
    cosine: Float[Tensor, " feature"]

    @property
    def mean(self) -> float:
        """The mean cosine of the pairs: MCC where every feature has a latent."""
        return float(self.cosine.mean())


def match(found: Float[Tensor, "width d"], true: Float[Tensor, "feature d"], signed: bool = True) -> Match:
    """Pair true features with latents by Hungarian matching of cosines; of absolute ones where a sign says nothing.

    ValueError where there are fewer latents than features.
    """
    if len(found) < len(true):
        raise ValueError(f"{len(found)} latents cannot be paired one to one with {len(true)} features")
    cosines = _unit(true.double()) @ _unit(found.double()).T
    if not signed:
        cosines = cosines.abs()
    feature, latent = linear_sum_assignment(cosines.detach().cpu().numpy(), maximize=True)
    pairs = torch.as_tensor(latent)
    return Match(pairs, cosines[torch.as_tensor(feature), pairs].float())


def recovered(
    found: Float[Tensor, "width d"], true: Float[Tensor, "feature d"], above: float = 0.9, signed: bool = True
) -> float:
    """Share of the true features that some latent's direction has a cosine of more than `above` with; an absolute one,
    unless `signed`, where codes have signs (AbsoluteTopK).
    """
    cosines = _unit(true) @ _unit(found).T
    return float(((cosines if signed else cosines.abs()).max(1).values > above).float().mean())


def splitting(found: Float[Tensor, "width d"], true: Float[Tensor, "feature d"], above: float = 0.7) -> float:
    """Over the true features that any latent is nearest to with a cosine of more than `above`, the mean number of such
    latents: 1 where each has one of its own. NaN where no latent is that near to any.
    """
    best = (_unit(found) @ _unit(true).T).max(1)
    counts = torch.bincount(best.indices[best.values > above], minlength=len(true))
    return float(counts[counts > 0].float().mean())


def mcc(found: Float[Tensor, "row width"], true: Float[Tensor, "row feature"]) -> float:
    """Mean correlation coefficient of codes with the true ones, after Hungarian matching of absolute correlations.

    A code that never changes correlates with nothing: 0.
    """
    if len(found) != len(true):
        raise ValueError(f"{len(found)} rows of codes, {len(true)} of true ones")
    a, b = (_unit((codes.double() - codes.double().mean(0)).T) for codes in (true, found))
    correlations = (a @ b.T).abs().cpu().numpy()
    rows, columns = linear_sum_assignment(correlations, maximize=True)
    return float(correlations[rows, columns].mean())


def firing_f1(
    codes: Codes, latent: Int[Tensor, " feature"], fires: Bool[Tensor, "row feature"]
) -> Float[Tensor, " feature"]:
    """For each feature the F1 score of its latent being active as a detector of the feature firing."""
    active = codes.dense()[:, latent] != 0
    true = (active & fires).sum(0)
    return 2 * true / (active.sum(0) + fires.sum(0)).clamp_min(1)


def absorption(codes: Codes, parent: int, fires: Bool[Tensor, " row"]) -> float:
    """P(the parent's latent is silent | a child fires): 0 where the parent is always said, 1 where never.

    `fires` are the rows in which a child of the parent fires. NaN where there is none.
    """
    return float((codes.of(parent)[fires] == 0).float().mean())


def random_dictionary(like: Dictionary, seed: int = 0) -> Dictionary:
    """The control: random unit directions, read and written alike, as many latents and as many active."""
    generator = torch.Generator().manual_seed((seed * 2654435761 + 0xD1C) % 2**63)
    rows = _unit(torch.randn(like.width, like.d_out, generator=generator)).to(like.W_dec)
    encoder = (
        rows if like.d_in == like.d_out else _unit(torch.randn(like.width, like.d_in, generator=generator)).to(rows)
    )
    return Dictionary(
        encoder,
        torch.zeros_like(like.b_enc),
        rows,
        like.b_dec,
        b_in=like.b_in,
        select=like.select if like.select != "threshold" else "topk",
        k=like.k if like.k is not None else max(1, min(like.width, round(_typical(like)))),
        shape_in=like.shape_in,
        shape_out=like.shape_out,
    )


def report(
    dictionary: Dictionary | Sequence[Dictionary],
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"] | None = None,
) -> dict[str, Any]:
    """The usual figures of a dictionary on rows that it was not trained on, and those of controls beside them.

    fvu, l0, dead (share of latents never active), dense (active in more than a tenth of the rows), shrinkage, and the
    median over latents of the cosine to the nearest other one. Controls are a "random" dictionary; and, with as many
    numbers a row as latents are active, principal components of the rows ("pca", always the same ones) and raw "units"
    (the largest of each row, about the mean). Several dictionaries, of different seeds, give means, and their standard
    deviations in "error"; ValueError for none.
    """
    several = [dictionary] if isinstance(dictionary, Dictionary) else list(dictionary)
    if not several:
        raise ValueError("report() needs at least one dictionary")
    target = x if y is None else y
    figures = [_figures(each, x, target) for each in several]
    random = [_figures(random_dictionary(each, seed), x, target) for seed, each in enumerate(several)]
    numbers = max(1, round(sum(each["l0"] for each in figures) / len(figures)))
    found: dict[str, Any] = {**_mean(figures), "random": _mean(random), **_linear(target.flatten(1), numbers)}
    if len(several) > 1:
        found["error"] = {name: stdev(each[name] for each in figures) for name in figures[0]}
    return found


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(each[name] for each in figures) for name in figures[0]}


def _linear(y: Float[Tensor, "row d"], numbers: int) -> dict[str, dict[str, float]]:
    """What as many principal components, or the largest units of each row, leave unexplained."""
    centred = (y - y.mean(0)).double()
    numbers = min(numbers, y.shape[1])
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    largest = (centred**2).topk(numbers, dim=1).values.sum()
    return {
        "pca": {"fvu": float(1 - spectrum[-numbers:].sum() / spectrum.sum()), "l0": float(numbers)},
        "units": {"fvu": float(1 - largest / (centred**2).sum()), "l0": float(numbers)},
    }


def _figures(dictionary: Dictionary, x: Tensor, target: Tensor) -> dict[str, float]:
    codes = dictionary.encode(x)
    explained = dictionary.decode(codes, x)
    frequency = density(codes)
    return {
        "fvu": fvu(target, explained),
        "l0": float(codes.l0().mean()),
        "dead": float((frequency == 0).float().mean()),
        "dense": float((frequency > 0.1).float().mean()),
        "shrinkage": shrinkage(
            target - dictionary.b_dec.reshape(dictionary.shape_out),
            explained - dictionary.b_dec.reshape(dictionary.shape_out),
        ),
        "nearest": float(decoder_cosines(dictionary).median()),
    }


def _typical(dictionary: Dictionary) -> float:
    """How many latents a dictionary was meant to use, as far as its part says."""
    part = dictionary.part or {}
    part = part.get("inner", part)
    return float(part.get("k") or part.get("l0") or 32)


def _unit(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    return torch.nn.functional.normalize(rows, dim=-1)
