"""The optimum is scikit-learn's, or lower."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from patchclamp.probes import Logistic
from patchclamp.probes.logistic import objective


def data(rows, d, labels=2, seed=0, scale=1.0, separation=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) * torch.logspace(0, -2, d)
    x = scale * (torch.randn(rows, d, generator=generator) @ mix) + 3
    w = torch.randn(d, labels, generator=generator)
    y = separation * (x - 3) @ w / ((x - 3) @ w).std() + torch.randn(rows, labels, generator=generator) > 0.3
    y[:2] = torch.tensor([[False], [True]])
    return x, y.float()


def value(x, y, w, b, C, weights=None):
    weights = torch.ones(len(x), 1) if weights is None else weights
    return float(
        objective(x[None].double(), y[None, :, None].double(), C * weights[None].double(), w[None, None], b[None, None])
    )


@given(
    rows=st.integers(8, 80),
    d=st.integers(1, 40),
    C=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    separation=st.sampled_from([0.0, 1.0, 20.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_the_objective_is_at_most_that_of_scikit_learn(rows, d, C, separation, seed):
    x, y = data(rows, d, 1, seed, separation=separation)
    ours = Logistic(C=C).fit(x, y[:, 0]).probe_
    peer = LogisticRegression(C=C, tol=1e-5, max_iter=2000).fit(x.double().numpy(), y[:, 0].numpy())
    theirs = value(x, y[:, 0], torch.tensor(peer.coef_[0]), torch.tensor(peer.intercept_[0]), C)
    assert value(x, y[:, 0], ours.weight, ours.bias, C) <= theirs * (1 + 1e-4) + 1e-9


def test_a_fine_tolerance_gives_the_same_weights():
    x, y = data(200, 20)
    ours = Logistic(C=0.5, tolerance=1e-12).fit(x, y).probe_
    for label in range(2):
        peer = LogisticRegression(C=0.5, tol=1e-9, max_iter=9000).fit(x.double().numpy(), y[:, label].numpy())
        assert torch.allclose(ours.weight[label], torch.tensor(peer.coef_[0]), atol=1e-5)
        assert float(ours.bias[label]) == pytest.approx(peer.intercept_[0], abs=1e-4)


def test_balanced_and_weighed_rows_are_those_of_scikit_learn():
    x, y = data(120, 8)
    weights = torch.rand(120, generator=torch.Generator().manual_seed(1)) + 0.1
    ours = Logistic(balanced=True, tolerance=1e-12).fit(x, y[:, 0]).probe_
    peer = LogisticRegression(class_weight="balanced", tol=1e-9, max_iter=9000)
    assert torch.allclose(ours.weight, torch.tensor(peer.fit(x.double().numpy(), y[:, 0].numpy()).coef_[0]), atol=1e-4)
    ours = Logistic(tolerance=1e-12).fit(x, y[:, 0], sample_weight=weights).probe_
    peer = LogisticRegression(tol=1e-9, max_iter=9000).fit(x.double().numpy(), y[:, 0].numpy(), weights.numpy())
    assert torch.allclose(ours.weight, torch.tensor(peer.coef_[0]), atol=1e-4)


def test_standardised_probes_do_not_depend_on_units():
    x, y = data(100, 10)
    units = torch.logspace(-3, 3, 10)
    one, other = (Logistic(standardise=True).fit(z, y).probe_.decision(z) for z in (x, x * units))
    assert torch.allclose(one, other, atol=1e-3)


def test_both_preconditioners_reach_the_optimum():
    """Few labels in many dimensions have a diagonal one, many labels in few dimensions a whole one."""
    for labels, d in ((1, 100), (40, 10)):
        x, y = data(150, d, labels)
        probe = Logistic(C=1.0).fit(x, y).probe_
        peer = LogisticRegression(tol=1e-7, max_iter=5000).fit(x.double().numpy(), y[:, -1].numpy())
        theirs = value(x, y[:, -1], torch.tensor(peer.coef_[0]), torch.tensor(peer.intercept_[0]), 1.0)
        assert value(x, y[:, -1], probe.weight[-1], probe.bias[-1], 1.0) <= theirs * (1 + 1e-5)


def test_easy_and_hard_labels_at_large_sites_are_each_at_their_optimum():
    """Sites that are taken apart when their easy labels are done, and the last labels by Hessians of their own."""
    drawn = [data(600, 60, 1, seed, separation=separation) for seed in range(3) for separation in (0, 0.3, 3, 30, 300)]
    x = torch.stack([drawn[5 * site][0] for site in range(3)])
    y = torch.stack([torch.cat([one for _, one in drawn[5 * site : 5 * site + 5]], 1) for site in range(3)])
    many = Logistic(C=10.0).fit(x, y).probe_
    best = Logistic(C=10.0, tolerance=1e-12).fit(x, y).probe_
    for site in range(3):
        for label in range(5):
            values = [
                value(x[site], y[site, :, label], p.weight, p.bias, 10.0)
                for p in (q[site, label] for q in (many, best))
            ]
            peer = LogisticRegression(C=10.0, tol=1e-6, solver="newton-cholesky").fit(
                x[site].double().numpy(), y[site, :, label]
            )
            theirs = value(
                x[site], y[site, :, label], torch.tensor(peer.coef_[0]), torch.tensor(peer.intercept_[0]), 10.0
            )
            assert values[0] <= values[1] * (1 + 1e-5) and values[1] <= theirs * (1 + 1e-9)


def test_single_precision_is_not_enough_for_what_is_large_and_is_not_used_there():
    x, y = data(200, 12)
    far = x.double() * 1e3 + 1e6
    near, moved = (Logistic(C=c, tolerance=1e-9).fit(z, y).probe_ for z, c in ((x, 1e6), (far, 1.0)))
    assert torch.allclose(near.weight, moved.weight * 1e3, rtol=1e-2, atol=1e-3)
    assert torch.allclose(near.decision(x), moved.decision(far), rtol=1e-2, atol=1e-2)


def test_too_few_iterations_are_an_error():
    x, y = data(100, 10)
    with pytest.raises(RuntimeError, match="no convergence in 2"):
        Logistic(iterations=2).fit(x, y)
    with pytest.raises(ValueError, match="C=0"):
        Logistic(C=0).fit(x, y)
