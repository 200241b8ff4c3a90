import pytest
import torch

from patchclamp.organisms import planted

N = 20_000


def test_superposition_has_k_of_g_and_power_laws():
    world = planted.superposition(features=256, width=64, active=8)
    batch = world.sample(N)
    assert batch.fires.sum(1).float().mean().item() == pytest.approx(8, rel=0.02)
    assert batch.values.min() >= 0.5
    assert batch.values.max() <= 1.5
    p = planted.superposition(active=4, power=1.0).truth().probabilities
    assert p.sum().item() == pytest.approx(4, rel=1e-5)
    assert (p[0] / p[9]).item() == pytest.approx(10, rel=1e-4)
    with pytest.raises(ValueError, match="at most 3 can"):
        planted.superposition(features=3, active=4)
    with pytest.raises(ValueError, match="always fires"):
        planted.superposition(features=100, active=8, power=2.0)


def test_sparse_codes_have_k_sources_in_every_row():
    batch = planted.sparse_codes(sources=16, width=8, active=3).sample(N)
    assert (batch.fires.sum(1) == 3).all()
    assert batch.activations.shape == (N, 8)


def test_the_tree_has_parents_with_and_without_children():
    world = planted.tree(active=2.0, child_share=0.8)
    truth, fires = world.truth(), world.sample(N).fires
    assert fires.sum(1).float().mean().item() == pytest.approx(2, rel=0.02)
    assert (len(truth.labelled("parent")), len(truth.labelled("child"))) == (4, 20)
    for parent in truth.labelled("parent"):
        children = truth.children(parent)
        assert len(children) == 5
        with_child = fires[fires[:, parent]][:, children].sum(1)
        assert with_child.max() == 1
        assert with_child.float().mean().item() == pytest.approx(0.8, abs=0.03)
    d = truth.directions[0]
    assert torch.allclose(d @ d.T, torch.eye(24), atol=1e-6)
    near = planted.tree(child_cosine=0.9).truth().directions[0]
    assert (near[0] @ near[4]).item() == pytest.approx(0.9, abs=1e-5)
    with pytest.raises(LookupError, match="there are child, parent"):
        truth.labelled("grandchild")
    with pytest.raises(ValueError, match="child_share"):
        planted.tree(child_share=1.5)


def test_a_pair_shares_what_its_labels_say():
    world = planted.pair()
    truth, batch = world.truth(), world.sample(4000)
    a, b = batch.activations.unbind(1)
    d = truth.directions  # orthogonal: projections are the coefficients times the strengths
    assert torch.equal(d[0], d[1])
    in_a, in_b = a @ d[0].T, b @ d[1].T
    for label, strength_a, strength_b in (("shared", 1, 1), ("weak", 0.35, 1), ("A-only", 1, 0), ("B-only", 0, 1)):
        own, z = truth.labelled(label), batch.coefficients
        torch.testing.assert_close(in_a[:, own], strength_a * z[:, own], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(in_b[:, own], strength_b * z[:, own], atol=1e-5, rtol=1e-5)
    apart = planted.pair(aligned=False).truth().directions
    assert (apart[0] * apart[1]).sum(-1).abs().max() < 0.9


def test_layers_have_the_features_that_live_there():
    world = planted.layers(count=4, features=64, persistent=0.5)
    truth, batch = world.truth(), world.sample(500)
    assert len(truth.labelled("0-3")) >= 32
    for i, label in enumerate(truth.labels):
        first, last = map(int, label.split("-"))
        assert truth.strengths[:, i].tolist() == [float(first <= layer <= last) for layer in range(4)]
    for layer in range(4):
        expected = batch.coefficients * truth.strengths[layer] @ truth.directions[layer]
        torch.testing.assert_close(batch.activations[:, layer], expected, atol=1e-5, rtol=1e-5)


def test_a_circle_fills_its_plane_evenly():
    world = planted.circles(circles=1, lines=0, width=6, active=1)
    batch, plane = world.sample(N), world.truth().planes[0, 0]
    flat = batch.activations @ plane.T
    torch.testing.assert_close(flat @ plane, batch.activations, atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.norm(dim=1), batch.values, atol=1e-5, rtol=0)
    assert flat.mean(0).abs().max() < 0.03
    assert torch.allclose(flat.T.cov(), torch.eye(2) * batch.values.square().mean() / 2, atol=0.02)


def test_the_teacher_is_a_known_mlp_of_sparse_units():
    batch = planted.teacher().sample(N)
    alive = (batch.units > 0).sum(1).float().mean().item()
    assert alive == pytest.approx(40 * 0.1587, rel=0.03)  # P(a standard normal number passes 1)
    reading = planted.teacher(features=48, active=4.0, reads=2, noise=0.0, threshold=0.4)
    truth = reading.truth()
    assert ((truth.encoder @ truth.directions[0].T) > 0.5).sum(1).min() >= 2
    assert (reading.sample(500).units > 0).any(0).float().mean() > 0.8


def test_the_neurons_that_know_the_label_shift_by_what_is_said():
    world = planted.neurons(width=64, support=3, shift=1.6, distractors=5)
    batch, know = world.sample(N), world.truth().directions[0, 0] > 0
    on = batch.fires[:, 0]
    shift = batch.activations[on].mean(0) - batch.activations[~on].mean(0)
    assert know.sum() == 3
    assert torch.allclose(shift[know], torch.full((3,), 1.6), atol=0.08)
    one = (world.truth().directions[0, 1:] > 0).any(0)
    assert torch.allclose(shift[one], torch.full((5,), 1.6 * 0.3), atol=0.08)  # the distractors' correlation
    assert shift[~know & ~one].abs().max() < 0.08
