"""Absorption: a latent for a concept falls silent where a more special latent has taken the concept into itself.

    absorption(dictionary, data)          # by a linear probe for each concept: full and fraction
    silent_parents(dictionary, data)      # where the truth is planted: P(the parent's latent is silent | a child fires)

Chanin et al. 2024 (arXiv:2409.14507); the fraction is from Karvonen et al. 2025 (arXiv:2503.09532).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries import Dictionary
from patchclamp.dictionaries.measures import absorption as share_silent
from patchclamp.evaluation import heads, probing
from patchclamp.evaluation.labelled import Labelled, latents

FULL_COSINE, FRACTION_COSINE = 0.025, 0.1
"""How near the probe an absorbing latent's decoder row is at least: for full absorption, and for its fraction."""
SHARE = 0.4
"""The share of the activation's projection on the probe that the absorbing latents make up at least."""
ABSORBERS = 3
"""How many latents may absorb a concept together."""
CLEAR = 0.6
"""F1 score of the probe below which a concept is not asked for."""


def absorption(dictionary: Dictionary, data: Labelled, *, seed: int = 0) -> dict[str, np.ndarray]:
    """How much of each concept's held-out rows is absorbed, [concept]; NaN where no linear probe finds the concept.

    Asked of rows which have the concept and in which the probe finds it, with p the probe's unit direction and f_j d_j
    what latent j adds. `full`: the share of rows in which the concept's main latents are silent, and the one latent of
    largest f_j d_j . p has a cosine of 0.025 with p and makes up 0.4 of x . p. `fraction`: the mean over rows of
    A / (A + M), where M is what the main latents add along p and A what up to 3 others of cosine 0.1 add, up to what M
    leaves of x . p; 0 where these make up less than 0.4 of x . p.
    """
    train, test = data.halves(seed)
    probes = heads.fit(train)
    mains = probing.main_latents(dictionary, train, seed=seed)
    codes = latents(dictionary, test.x).double()
    decoder = torch.nn.functional.normalize(dictionary.W_dec.double(), dim=-1)
    said = probes.decision(test.x) > 0
    clear = heads.f1(said, test.holds) > CLEAR
    found: dict[str, list[float]] = {"full": [], "fraction": []}
    for concept in range(len(data.names)):
        asked = test.holds[:, concept] & said[:, concept]
        if not clear[concept] or not bool(asked.any()):
            rows = (torch.tensor([torch.nan]),) * 2
        else:
            probe = torch.nn.functional.normalize(probes.weight[concept], dim=0)
            rows = _of_rows(codes[asked], test.x[asked].double() @ probe, decoder @ probe, mains[concept])
        for values, each in zip(found.values(), rows, strict=True):
            values.append(float(each.mean()))
    return {name: np.array(values) for name, values in found.items()}


def _of_rows(
    codes: Float[Tensor, "row width"],
    along: Float[Tensor, " row"],
    cosine: Float[Tensor, " width"],
    main: list[int],
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Full absorption (0 or 1) and its fraction in each row; `along` is the activation's projection on the probe."""
    added = codes * cosine
    top = added.max(1)
    silent = (codes[:, main] == 0).all(1)
    full = silent & (along > 0) & (cosine[top.indices] >= FULL_COSINE) & (top.values >= SHARE * along)
    others = torch.where(cosine >= FRACTION_COSINE, added, 0.0).clamp_min(0)
    others[:, main] = 0.0
    absorbed = others.topk(min(ABSORBERS, others.shape[1]), dim=1).values.sum(1)
    by_main = added[:, main].sum(1).clamp_min(0)
    asked = (along > 0) & (by_main < along) & (absorbed >= SHARE * along)
    absorbed = torch.minimum(absorbed, along - by_main)
    fraction = torch.where(asked, absorbed / (absorbed + by_main).clamp_min(1e-12), 0.0)
    return full.double(), fraction


def silent_parents(dictionary: Dictionary, data: Labelled) -> np.ndarray:
    """For each planted parent, P(its latent is silent | a child of it fires); its latent is the one nearest to it.

    ValueError where the data have no planted parents. Directions are compared by decoder cosine.
    """
    if data.directions is None or not any(parent >= 0 for parent in data.parents):
        raise ValueError("this asks for planted concepts, some of which are parents of others: Labelled.planted(...)")
    decoder = torch.nn.functional.normalize(dictionary.W_dec, dim=-1)
    nearest = (torch.nn.functional.normalize(data.directions, dim=-1) @ decoder.T).argmax(1)
    codes = dictionary.encode(data.x)
    found = []
    for parent in sorted({parent for parent in data.parents if parent >= 0}):
        children = [i for i, own in enumerate(data.parents) if own == parent]
        found.append(share_silent(codes, int(nearest[parent]), data.holds[:, children].any(1)))
    return np.array(found)
