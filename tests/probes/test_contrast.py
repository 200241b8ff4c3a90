"""What is consistent within pairs is found without labels; the eigenvector is the optimum of its loss."""

import pytest
import torch

from patchclamp.probes import CCS, accurate_h, agreeing_h, descended


def pairs(n=600, d=16, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
    y = (torch.rand(n, generator=generator) < 0.5).float()
    sides = torch.stack([2 * y - 1, 1 - 2 * y], 1)[..., None]
    loud = 2 * torch.randn(n, 2, 1, generator=generator)
    x = 0.5 * sides * axes[0] + loud * axes[1] + noise * torch.randn(n, 2, d, generator=generator)
    return x + torch.tensor([3.0, -3.0])[:, None], y, axes[0]  # the sides differ by a constant, which says nothing


@pytest.mark.parametrize("loss", ["ccs", "midpoint"])
def test_the_planted_truth_is_found(loss):
    x, y, _ = pairs()
    probe = CCS(loss=loss, h=0.9).fit(x[:300], y[:300])
    assert probe.score(x[300:], y[300:]) > 0.85


@pytest.mark.parametrize("loss", ["absolute", "root"])
def test_the_sibling_losses_find_what_is_equally_far_apart_in_all_pairs(loss):
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(400, generator=generator) < 0.5).float()
    x = 0.3 * torch.randn(400, 2, 8, generator=generator)
    x[:, :, 2] += torch.stack([2 * y - 1, 1 - 2 * y], 1)
    probe = CCS(loss=loss, h=0.5).fit(x[:200], y[:200])
    assert probe.score(x[200:], y[200:]) > 0.95


def test_the_eigenvector_is_what_descent_finds():
    x, _, _ = pairs()
    for h in (0.3, 0.9):
        probe = CCS(loss="midpoint", h=h)
        assert float((descended(CCS(h=h, tries=2, steps=1500), x) @ probe.fit(x).weight_).abs()) > 0.999


def test_without_labels_the_sign_is_a_convention_and_both_are_told():
    x, y, _ = pairs()
    probe = CCS(loss="midpoint").fit(x)
    assert float(probe.weight_[probe.weight_.abs().argmax()]) > 0
    one, other = probe.score_both(x, y)
    assert one + other == pytest.approx(1.0)
    assert CCS(loss="midpoint").fit(x, y).score(x, y) == max(one, other)
    assert CCS(loss="midpoint").fit(x, 1 - y).score(x, y) == min(one, other)


def test_sites_are_fitted_each_for_itself():
    many = torch.stack([pairs(seed=seed)[0] for seed in (0, 1)])
    probe = CCS(loss="midpoint").fit(many)
    assert torch.allclose(probe.weight_[1], CCS(loss="midpoint").fit(many[1]).weight_)
    assert probe.predict(many).shape == (2, 600)


def test_h_is_chosen_by_agreement_or_by_labels():
    x, y, _ = pairs(noise=0.5)
    h, cosine = agreeing_h(x, CCS(tries=5).fit(x).every_)
    assert 0.9 <= h <= 0.999 and cosine > 0.8
    best = CCS(loss="midpoint", h=accurate_h(x, y)).fit(x, y).score(x, y)
    assert best >= CCS(loss="midpoint", h=0.0).fit(x, y).score(x, y)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="row, 2, d"):
        CCS().fit(torch.zeros(4, 3, 5))
    with pytest.raises(ValueError, match="expected one of"):
        CCS(loss="md")
    with pytest.raises(ValueError, match="share between"):
        CCS(h=2.0)
