"""Worlds of orthogonal features, on which every score of the dictionary of truth is known, and what is made of them."""

import torch

from patchclamp.dictionaries import Dictionary
from patchclamp.evaluation import Labelled, oracle
from patchclamp.organisms import planted

FEATURES = planted.Planted(16, (0.5,) * 6, planted.Uniform(0.8, 1.2), geometry="orthogonal")
"""Six features in sixteen dimensions, each in half of the rows, independent and orthogonal."""
TREE = planted.tree()


def features(rows: int = 2000, seed: int = 0) -> Labelled:
    return Labelled.planted(FEATURES.sample(rows, seed), FEATURES.truth())


def tree(rows: int = 4000, seed: int = 0) -> Labelled:
    return Labelled.planted(TREE.sample(rows, seed), TREE.truth())


def truth(data: Labelled) -> Dictionary:
    """The dictionary whose latents are the planted features."""
    assert data.directions is not None
    return oracle(data.directions)


def changed(one: Dictionary, *, order=None, scale: float = 1.0) -> Dictionary:
    """The same latents in another order, and so much larger with decoder rows so much smaller."""
    order = torch.arange(one.width) if order is None else order
    return Dictionary(
        scale * one.W_enc[order],
        scale * one.b_enc[order],
        one.W_dec[order] / scale,
        one.b_dec,
        b_in=one.b_in,
        select=one.select,
        k=one.k,
        threshold=scale * one.threshold[order],
    )
