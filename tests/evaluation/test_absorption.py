import numpy as np
import pytest
import torch

from evaluation.worlds import TREE, changed, features, tree, truth
from patchclamp.dictionaries import Dictionary
from patchclamp.evaluation import Labelled, silent_parents
from patchclamp.evaluation import absorption as measure
from patchclamp.evaluation.absorption import _of_rows


def absorbing(directions: torch.Tensor) -> Dictionary:
    """The tree's dictionary of complete absorption: a child's latent writes its parent too, and the parent's is silent
    where one of its children fires: its encoder sees them with a minus.
    """
    parents = torch.tensor(TREE.parents)
    encoder, decoder = directions.clone(), directions.clone()
    for child, parent in enumerate(TREE.parents):
        if parent >= 0:
            encoder[parent] -= 2 * directions[child]
            decoder[child] += directions[parent]
    assert bool((parents >= 0).any())
    zeros = torch.zeros(len(directions))
    return Dictionary(encoder, zeros, decoder, torch.zeros(directions.shape[1]), threshold=1e-3)


def test_the_dictionary_of_truth_has_no_silent_parents_and_the_absorbing_one_nothing_else():
    data = tree()
    assert np.all(silent_parents(truth(data), data) == 0.0)
    assert np.all(silent_parents(absorbing(data.directions), data) == 1.0)


def test_silent_parents_ask_for_parents():
    with pytest.raises(ValueError, match="parents"):
        silent_parents(truth(features()), features())


def test_by_probes_the_truth_absorbs_nothing():
    data = features()
    found = measure(truth(data), data)
    assert np.all(found["full"] == 0.0) and np.all(found["fraction"] == 0.0)


def test_a_rare_child_that_takes_its_parent_along_is_absorption():
    """A concept of which one case in twenty is said by a latent of its own, as letters and tokens are."""
    generator = torch.Generator().manual_seed(0)
    special, plain = torch.eye(8)[1], torch.eye(8)[0]
    kind = torch.rand(4000, generator=generator)
    holds, rare = kind < 0.5, kind < 0.025
    x = holds[:, None] * plain + rare[:, None] * special + 0.05 * torch.randn(4000, 8, generator=generator)
    data = Labelled(x, holds[:, None], ("concept",))
    encoder = torch.stack([plain - 2 * special, special])
    decoder = torch.stack([plain, special + plain])
    found = measure(Dictionary(encoder, torch.zeros(2), decoder, torch.zeros(8), threshold=0.3), data)
    assert found["full"][0] == pytest.approx(0.05, abs=0.02)
    honest = Dictionary(torch.eye(8)[:2], torch.zeros(2), torch.eye(8)[:2], torch.zeros(8), threshold=0.3)
    assert measure(honest, data)["full"][0] == 0.0


def test_the_fraction_by_hand():
    """Two rows, one main latent (0), absorbers 1 and 2 along the probe, 3 against it."""
    cosine = torch.tensor([1.0, 0.5, 0.2, -0.5], dtype=torch.float64)
    codes = torch.tensor([[0.5, 1.0, 0.0, 0.0], [0.0, 2.0, 1.0, 1.0]], dtype=torch.float64)
    full, fraction = _of_rows(codes, torch.tensor([1.0, 1.2], dtype=torch.float64), cosine, [0])
    assert full.tolist() == [0.0, 1.0]
    # Row 0: the main latent adds 0.5 of 1.0, the absorber 0.5. Row 1: 1.2 of 1.2 by absorbers, nothing by the main one.
    assert fraction.tolist() == [0.5, 1.0]


def test_less_than_the_threshold_is_no_absorption():
    cosine = torch.tensor([1.0, 0.5], dtype=torch.float64)
    codes = torch.tensor([[0.0, 0.7]], dtype=torch.float64)
    full, fraction = _of_rows(codes, torch.tensor([1.0], dtype=torch.float64), cosine, [0])
    assert full.tolist() == [0.0] and fraction.tolist() == [0.0]


def test_decoder_rows_need_not_be_unit_vectors():
    """Projections are of what a latent adds: f_j d_j, whatever the norm of d_j."""
    data = tree()
    one = absorbing(data.directions)
    mine, theirs = measure(one, data), measure(changed(one, scale=5.0), data)
    assert np.allclose(mine["full"], theirs["full"]) and np.allclose(mine["fraction"], theirs["fraction"], atol=1e-6)
