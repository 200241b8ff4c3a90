"""One fit of many sites and labels is each of them alone; what does not fit together is refused by name."""

import numpy as np
import pytest
import torch

from patchclamp.probes import LDA, DifferenceOfMeans, KSparse, Logistic, NearestMean, Probe, Ridge, one_hot

KINDS = [Logistic(), Ridge(), DifferenceOfMeans(), NearestMean(), LDA(), KSparse(2)]


def rows(*sites, row=60, d=6, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*sites, row, d, generator=generator)
    return x, (x[..., :labels] + torch.randn(*sites, row, labels, generator=generator) > 0.2).float()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_many_at_once_are_each_of_them_alone(kind):
    x, y = rows(2, 3)
    whole = kind.fit(x, y).probe_
    assert whole.weight.shape == (2, 3, 3, 6) and whole.bias.shape == (2, 3, 3)
    assert kind.score(x, y).shape == (2, 3, 3)
    alone = kind.fit(x[1, 2], y[1, 2, :, 1]).probe_
    assert alone.weight.shape == (6,) and isinstance(kind.score(x[1, 2], y[1, 2, :, 1]), float)
    assert torch.allclose(whole.weight[1, 2, 1], alone.weight, atol=2e-3)
    assert torch.allclose(whole.bias[1, 2, 1], alone.bias, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_a_weight_of_two_is_a_row_given_twice(kind):
    x, y = rows(row=50)
    weights = torch.ones(50)
    weights[:10] = 2.0
    weights[40:] = 0.0
    weighed = kind.fit(x, y, sample_weight=weights).probe_
    twice = kind.fit(torch.cat([x[:40], x[:10]]), torch.cat([y[:40], y[:10]])).probe_
    if not (isinstance(kind, Ridge) and kind.alpha is None):  # leave-one-out leaves one of the two behind
        assert torch.allclose(weighed.weight, twice.weight, atol=2e-3)


def test_labels_may_be_shared_by_sites_or_their_own():
    x, y = rows(2, labels=1)
    shared = y[0, :, 0]
    once = Logistic().fit(x, shared).probe_.weight
    assert torch.equal(once, Logistic().fit(x, shared.expand(2, -1)).probe_.weight)
    assert torch.equal(once, Logistic().fit(x, shared[:, None]).probe_.weight[:, 0])
    assert torch.equal(once, Logistic().fit(x.numpy(), shared.numpy() > 0).probe_.weight)


def test_a_shift_of_activations_moves_the_bias_alone():
    x, y = rows()
    for kind in KINDS:
        one, other = kind.fit(x, y).probe_, kind.fit(x + 5, y).probe_
        assert torch.allclose(one.weight, other.weight, atol=2e-3), type(kind).__name__
        assert torch.allclose(one.decision(x), other.decision(x + 5), atol=2e-2)


def test_a_probe_is_a_direction_with_its_site():
    x, y = rows(2)
    probe = DifferenceOfMeans().fit(x, y, site="resid_post.1").probe_
    with pytest.raises(ValueError, match=r"\(2, 3\) probes"):
        probe.as_direction()
    vector, site = probe[1, 2].as_direction()
    assert torch.allclose(vector.float(), x[1][y[1, :, 2] > 0].mean(0) - x[1][y[1, :, 2] == 0].mean(0), atol=1e-5)
    assert site == "resid_post.1"
    assert torch.equal(probe[1].decision(x[1]), probe.decision(x)[1])


def test_one_hot_names_classes():
    y, names = one_hot(np.array([3, 1, 3]))
    assert names == [1, 3] and y.tolist() == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(5), torch.zeros(5), "expected"),
        (torch.zeros(5, 2), torch.tensor([0, 1, 2, 0, 1]), "one_hot"),
        (torch.zeros(5, 2), torch.zeros(5), "label 0 has only one"),
        (torch.zeros(5, 2), torch.tensor([0, 1, 0, 1]), r"y is \(4,\)"),
        (torch.full((4, 2), torch.nan), torch.tensor([0, 1, 0, 1]), "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        Logistic().fit(x, y)


def test_a_probe_that_was_not_fitted_says_so():
    with pytest.raises(ValueError, match="not fitted yet"):
        Ridge().predict(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="3 dimensions, the probe 2"):
        Probe(torch.ones(2), torch.zeros(())).decision(torch.zeros(4, 3))
