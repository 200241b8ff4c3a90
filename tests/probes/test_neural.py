"""Probes that are not linear read what no linear one can; attention reads a position that moves."""

import pytest
import torch

from patchclamp.probes import MLP, AttentionPooled, Logistic, NearestNeighbours, PCALogistic


def xor(n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, 4, generator=generator)
    return x, (x[..., :1] * x[..., 1:2] > 0).float()


@pytest.mark.parametrize("probe", [MLP(), NearestNeighbours(8)], ids=["MLP", "neighbours"])
def test_an_exclusive_or_is_read(probe):
    x, y = xor()
    linear = Logistic().fit(x[:, :200], y[:, :200]).score(x[:, 200:], y[:, 200:])
    curved = probe.fit(x[:, :200], y[:, :200]).score(x[:, 200:], y[:, 200:])
    assert linear.max() < 0.65 and curved.min() > 0.8


@pytest.mark.parametrize("probe", [MLP(steps=30), NearestNeighbours(4), PCALogistic(3)], ids=lambda p: type(p).__name__)
def test_many_at_once_are_each_alone(probe):
    x, y = xor(60)
    y = torch.cat([y, (x[..., 2:3] > 0).float()], -1)
    whole = probe.fit(x, y).decision_function(x)
    assert whole.shape == (2, 60, 2)
    if not isinstance(probe, MLP):  # whose second label starts elsewhere
        assert torch.allclose(whole[1, :, 1], probe.fit(x[1], y[1, :, 1]).decision_function(x[1]), atol=2e-3)


def test_attention_finds_the_position_and_the_mean_does_not():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 7, 12, generator=generator)
    where, y = torch.randint(5, (400,), generator=generator), (torch.rand(400, generator=generator) < 0.5).float()
    x[torch.arange(400), where, 0] = 4.0
    x[torch.arange(400), where, 1] = 4 * y - 2
    mask = torch.arange(7) < 5
    x[:, 5:] = 100.0  # padding
    mask = mask.expand(400, 7)
    probe = AttentionPooled().fit(x[:300], y[:300], mask=mask[:300])
    assert probe.score(x[300:], y[300:], mask=mask[300:]) > 0.95
    mean = x[:, :5].mean(1)
    assert Logistic().fit(mean[:300], y[:300]).score(mean[300:], y[300:]) < 0.9
    several = AttentionPooled(steps=20).fit(x[None, :300], y[:300, None].repeat(1, 2), mask=mask[:300])
    assert several.decision_function(x[None], mask=mask).shape == (1, 400, 2)
    with pytest.raises(ValueError, match="a position in every row"):
        probe.predict(x, mask=torch.zeros(400, 7))
