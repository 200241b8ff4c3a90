"""The choice is by rows left out, site by site, and sees no test."""

import pytest
import torch

from patchclamp.probes import Logistic, NearestNeighbours, Quiver
from patchclamp.probes.quiver import splits


def rows():
    """Two sites: a linear label, and one that only neighbours can read."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(200) % 2).float()
    linear = torch.randn(200, 3, generator=generator)
    linear[:, 0] += 2 * y
    ring = torch.randn(200, 2, generator=generator)
    ring = ring / ring.norm(dim=1, keepdim=True) * (1 + 2 * y[:, None])
    return torch.stack([linear[:, :2], ring]), y


ARROWS = {"logistic": [Logistic(C=c) for c in (1.0, 0.01)], "neighbours": [NearestNeighbours(9), NearestNeighbours(1)]}


def test_each_site_gets_its_arrow():
    x, y = rows()
    quiver = Quiver(ARROWS).fit(x[:, :120], y[:120])
    assert quiver.chosen_ == ["logistic", "neighbours"]
    assert quiver.score(x[:, 120:], y[120:]).min() > 0.85
    alone = quiver.of("logistic", x[:, 120:])
    assert torch.equal(quiver.decision_function(x[:, 120:])[0], alone[0])
    assert torch.equal(quiver.decision_function(x[:, 120:], ["logistic"]), alone)


def test_the_choice_is_the_same_whatever_the_test():
    x, y = rows()
    one, other = (Quiver(ARROWS, seed=3).fit(x[:, :40], y[:40]) for _ in range(2))
    other.decision_function(x[:, 40:])
    assert all(torch.equal(one.validation_[name], other.validation_[name]) for name in ARROWS)


@pytest.mark.parametrize(("n", "times", "size"), [(3, 0, 0), (12, 6, 2), (60, 6, 10), (200, 1, 40), (1000, 1, 100)])
def test_rows_are_left_out_by_how_many_there_are(n, times, size):
    y = (torch.arange(n) % 2).float()
    left = splits(y)
    assert len(left) == times
    assert all(len(out) == size and 0 < float(y[out].mean()) < 1 for out in left)


def test_a_quiver_needs_arrows_and_shared_labels():
    x, y = rows()
    with pytest.raises(ValueError, match="needs arrows"):
        Quiver({"logistic": []}).fit(x, y)
    with pytest.raises(ValueError, match=r"expected \[200\]"):
        Quiver(ARROWS).fit(x, y.expand(2, -1))
