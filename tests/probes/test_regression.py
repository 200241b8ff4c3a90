"""Probes for numbers agree with scikit-learn, site by site and label by label, and find what was put there."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import OrthogonalMatchingPursuit
from sklearn.linear_model import Ridge as PeerRidge
from sklearn.metrics import r2_score

from patchclamp.probes import Logistic, MLPRegression, RidgeRegression, SparseRegression, measures

KINDS = [RidgeRegression(), RidgeRegression(alpha=2.0), SparseRegression(2), MLPRegression(hidden=8, steps=60)]


def data(*sites, row=60, d=8, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*sites, row, d, generator=generator).double()
    w = torch.randn(d, labels, generator=generator).double()
    return x, 50 * (x @ w) + 300 + torch.randn(*sites, row, labels, generator=generator).double()


@pytest.mark.parametrize(("rows", "d"), [(80, 10), (30, 50)])
def test_ridge_is_that_of_scikit_learn_at_every_site(rows, d):
    x, y = data(2, 3, row=rows, d=d)
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(1)).double() + 0.1
    fit = RidgeRegression(alpha=3.0).fit(x, y, sample_weight=weights)
    for place in np.ndindex(2, 3):
        peer = PeerRidge(alpha=3.0).fit(x[place].numpy(), y[place].numpy(), weights.numpy())
        assert np.allclose(fit.probe_.weight[place], peer.coef_, rtol=1e-9, atol=1e-9)
        assert np.allclose(fit.probe_.bias[place], peer.intercept_, rtol=1e-11)
        assert np.allclose(fit.predict(x)[place], peer.predict(x[place].numpy()), rtol=1e-10)
    theirs = r2_score(y[1, 2].numpy(), fit.predict(x)[1, 2].numpy(), multioutput="raw_values")
    assert np.allclose(fit.score(x, y)[1, 2], theirs, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_many_at_once_are_each_of_them_alone(kind):
    x, y = data(2, 3)
    whole = kind.fit(x, y).predict(x)
    assert kind.score(x, y).shape == (2, 3, 3) and whole.shape == y.shape
    assert torch.allclose(whole[1, 2], kind.fit(x[1, 2], y[1, 2]).predict(x[1, 2]), rtol=1e-3)
    alone = kind.fit(x[1, 2], y[1, 2, :, 0])
    assert isinstance(alone.score(x[1, 2], y[1, 2, :, 0]), float) and alone.predict(x[1, 2]).shape == (60,)


def test_greedy_units_are_those_of_orthogonal_matching_pursuit():
    x, y = data(2, row=100, d=30, labels=2)
    x = x / x.std(1, keepdim=True, unbiased=False)
    fit = SparseRegression(5, alpha=1e-9).fit(x, y)
    for site in range(2):
        for label in range(2):
            centred = (x[site] - x[site].mean(0)).numpy()
            peer = OrthogonalMatchingPursuit(n_nonzero_coefs=5).fit(centred, y[site, :, label].numpy())
            assert set(fit.support_[site, label].tolist()) == set(np.flatnonzero(peer.coef_).tolist())
            assert np.allclose(fit.probe_.weight[site, label], peer.coef_, atol=1e-6)


def test_planted_units_are_found_and_random_ones_say_nothing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 200, generator=generator)
    y = 3 * x[:, 17] - 2 * x[:, 90] + 0.5 * torch.randn(400, generator=generator)
    scores = {}
    for selector in ("greedy", "correlation", "random"):
        fit = SparseRegression(2, selector=selector).fit(x[:200], y[:200])
        scores[selector] = fit.score(x[200:], y[200:])
        if selector != "random":
            assert fit.support_.tolist() == [17, 90]
    assert scores["greedy"] > 0.95 and scores["random"] < 0.2
    shuffled = y[torch.randperm(400, generator=generator)]
    assert RidgeRegression().fit(x[:200], shuffled[:200]).score(x[200:], shuffled[200:]) < 0.1


def test_what_is_not_linear_needs_the_mlp():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 4, generator=generator)
    y = 100 + 10 * x[:, 0].abs()
    mlp = MLPRegression(hidden=16).fit(x[:400], y[:400])
    assert mlp.score(x[400:], y[400:]) > 0.9
    assert RidgeRegression().fit(x[:400], y[:400]).score(x[400:], y[400:]) < 0.1


def test_measures_of_numbers():
    _, y = data(labels=1)
    told = y[:, 0] + 30 * torch.randn(60, generator=torch.Generator().manual_seed(1)).double()
    assert float(measures.r2(told, y[:, 0])) == pytest.approx(r2_score(y[:, 0], told))
    assert float(measures.correlation(told, y[:, 0])) == pytest.approx(np.corrcoef(y[:, 0], told)[0, 1])
    assert float(measures.r2(y[:, 0].mean().expand(60), y[:, 0])) == pytest.approx(0)


def test_wrong_input_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match="numbers are read by RidgeRegression"):
        Logistic().fit(x, y)
    with pytest.raises(ValueError, match="label 1 has only one"):
        RidgeRegression().fit(x, y * torch.tensor([1, 0, 1]))
    with pytest.raises(ValueError, match="y has entries that are not finite"):
        RidgeRegression().fit(x, y / 0)
    with pytest.raises(ValueError, match="did you mean 'greedy'"):
        SparseRegression(2, selector="greed")
    with pytest.raises(ValueError, match="k=9 of 8 units"):
        SparseRegression(9).fit(x, y)
