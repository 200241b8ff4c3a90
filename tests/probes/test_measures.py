"""Measures agree with scikit-learn, and intervals cover."""

import pytest
import torch
from sklearn import metrics as peer

from patchclamp.probes import measures


def decisions(seed=0, rows=60):
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(4, rows, generator=generator) < 0.4).float()
    return ((y + torch.randn(4, rows, generator=generator) - 0.5) * 2).round(), y  # with ties


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("accuracy", lambda y, z: peer.accuracy_score(y, z > 0)),
        ("balanced_accuracy", lambda y, z: peer.balanced_accuracy_score(y, z > 0)),
        ("f1", lambda y, z: peer.f1_score(y, z > 0)),
        ("mcc", lambda y, z: peer.matthews_corrcoef(y, z > 0)),
        ("auc", peer.roc_auc_score),
    ],
)
def test_it_is_that_of_scikit_learn(name, theirs):
    z, y = decisions()
    found = measures.by_name(name)(z, y)
    assert found.tolist() == pytest.approx([theirs(b.numpy(), a.numpy()) for a, b in zip(z, y, strict=True)])


def test_bootstrap_intervals_are_as_wide_as_the_normal_ones():
    generator = torch.Generator().manual_seed(0)
    y = torch.ones(400)
    z = torch.where(torch.rand(400, generator=generator) < 0.8, 1.0, -1.0)
    low, high = measures.bootstrap(measures.accuracy, z, y, resamples=1000, seed=1)
    assert float(high - low) == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 400) ** 0.5, rel=0.15)


def test_groups_are_drawn_whole():
    """Ten groups of forty equal rows know as much as ten rows."""
    z = torch.tensor([1.0, -1.0] * 5).repeat_interleave(40)
    groups = torch.arange(10).repeat_interleave(40)
    low, high = measures.bootstrap(measures.accuracy, z, torch.ones(400), groups=groups)
    assert float(high - low) > 0.4


def test_a_misspelt_measure_is_told_the_names():
    with pytest.raises(LookupError, match="balanced_accuracy"):
        measures.by_name("acc")
