"""Closed forms agree with scikit-learn and with definitions."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as PeerRidge
from sklearn.neighbors import NearestCentroid

from patchclamp.probes import LDA, DifferenceOfMeans, NearestMean, Ridge
from patchclamp.probes.linear import ALPHAS


def data(rows, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=generator).double()
    return x, (x[:, :2] + torch.randn(rows, 2, generator=generator) > 0.3).double()


@pytest.mark.parametrize(("rows", "d"), [(80, 10), (30, 50)])
def test_ridge_is_that_of_scikit_learn(rows, d):
    x, y = data(rows, d)
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(1)).double() + 0.1
    ours = Ridge(alpha=3.0).fit(x, y, sample_weight=weights).probe_
    peer = PeerRidge(alpha=3.0).fit(x.numpy(), 2 * y.numpy() - 1, weights.numpy())
    assert np.allclose(ours.weight, peer.coef_, atol=1e-9) and np.allclose(ours.bias, peer.intercept_, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_units_that_repeat_share_their_weight_under_the_smallest_penalty(scale):
    """Where no Cholesky factor is to be trusted: the limit of no penalty, the least weights that fit."""
    x, y = data(60, 6)
    double = torch.cat([x, x[:, :2]], 1) * scale
    ours = Ridge(alpha=1e-9).fit(double, y).probe_
    centred, target = (double - double.mean(0)).numpy(), (2 * y - 1 - (2 * y - 1).mean(0)).numpy()
    least = np.linalg.lstsq(centred, target, rcond=1e-9)[0].T
    assert np.allclose(ours.weight * scale, least * scale, rtol=1e-5, atol=1e-7)
    assert np.allclose(ours.weight[:, :2], ours.weight[:, 6:])


@pytest.mark.parametrize(("rows", "d"), [(40, 8), (24, 40)])
def test_the_penalty_is_that_of_refitting_without_each_row(rows, d):
    x, y = data(rows, d)
    centred = (x - x.mean(0)).numpy()
    level = np.linalg.eigvalsh(centred.T @ centred if rows >= d else centred @ centred.T).mean()
    target = 2 * y[:, 1].numpy() - 1
    errors = []
    for alpha in ALPHAS:
        left = [np.arange(rows) != i for i in range(rows)]
        fits = [PeerRidge(alpha=alpha * level).fit(x[keep].numpy(), target[keep]) for keep in left]
        errors.append(sum((fit.predict(x[i : i + 1].numpy())[0] - target[i]) ** 2 for i, fit in enumerate(fits)))
    assert float(Ridge().fit(x, y).alpha_[1]) == pytest.approx(ALPHAS[int(np.argmin(errors))] * level)


def test_the_discriminant_is_that_of_scikit_learn():
    x, y = data(90, 12)
    ours = LDA(shrinkage=0.3).fit(x, y).probe_
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(x.numpy(), y[:, 1].numpy())
    assert np.allclose(ours.weight[1], peer.coef_[0]) and float(ours.bias[1]) == pytest.approx(peer.intercept_[0])
    with pytest.raises(ValueError, match="singular: raise shrinkage"):
        LDA(shrinkage=0.0).fit(*data(12, 20))


def test_nearest_mean_is_the_nearest_centroid():
    x, y = data(90, 12)
    peer = NearestCentroid().fit(x.numpy(), y[:, 0].numpy())
    assert (NearestMean().fit(x, y[:, 0]).predict(x).numpy() == peer.predict(x.numpy())).all()


def test_difference_of_means_knows_the_shares_and_the_spread():
    """On two normal distributions its decision is the log odds."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(200_000, generator=generator) < 0.2).double()
    x = torch.randn(200_000, 1, generator=generator).double() * 2 + 3 * y[:, None]
    probe = DifferenceOfMeans().fit(x, y).probe_
    # log odds = 3/4 x - 9/8 + log(0.2 / 0.8), which is 0 at this x
    threshold = (9 / 8 - np.log(0.25)) / 0.75
    assert float(-probe.bias / probe.weight[0]) == pytest.approx(threshold, abs=0.05)
    assert float(probe.weight[0]) == pytest.approx(3, abs=0.05)
