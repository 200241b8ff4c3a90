import numpy as np
import torch

from evaluation.worlds import changed, features, truth
from patchclamp.evaluation import forgetting, identity
from patchclamp.evaluation.labelled import latents
from patchclamp.evaluation.unlearning import Clamp, of_concepts


def test_the_feature_of_its_own_is_forgotten_whole():
    data = features()
    assert np.all(of_concepts(truth(data), data)["forgotten"] > 0.99)


def test_what_is_active_everywhere_is_not_clamped():
    data = features()
    assert np.all(of_concepts(identity(16), data)["forgotten"] < 0.05)


def test_a_clamp_moves_active_latents_alone_and_keeps_the_error():
    data = features(100)
    one = truth(data)
    x = data.x + torch.eye(16)[7]
    edited = Clamp(one, torch.tensor([2]), torch.tensor([-3.0]))(x)
    before, after = latents(one, x), (x + (edited - x))
    moved = (edited - x).norm(dim=1) > 1e-4
    assert torch.equal(moved, before[:, 2] > 0)
    along = (after @ one.W_dec[2])[moved]
    assert torch.allclose(along, -3.0 + (x @ one.W_dec[2] - before[:, 2])[moved], atol=1e-4)


def test_a_setting_that_harms_the_rest_is_not_taken():
    data = features(400)
    has = data.holds[:, 0]
    calls = []

    def accuracy(edit):
        calls.append(len(edit.which))
        return (1.0, 1.0) if not len(edit.which) else (0.0, 0.9)

    found = forgetting(truth(data), data.x[has], data.x[~has], accuracy)
    assert found.latents == () and found.score == 0.0 and found.untouched == (1.0, 1.0) and max(calls) > 0


def test_the_order_and_the_size_of_latents_do_not_matter():
    data = features()
    one = truth(data)
    for other in (changed(one, order=torch.tensor([5, 4, 3, 2, 1, 0])), changed(one, scale=2.0)):
        assert np.allclose(of_concepts(one, data)["forgotten"], of_concepts(other, data)["forgotten"], atol=1e-6)
