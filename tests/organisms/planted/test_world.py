import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.organisms import planted
from patchclamp.organisms.planted import Constant, Exponential, HalfNormal, Planted, Teacher, Uniform

EVERYTHING = Planted(  # every part that goes with the others
    width=24,
    probabilities=(0.5, 0.4, 0.3, 0.3, 0.2, 0.1, 0.2, 0.1, 0.05),
    groups=((2, 3),),
    correlation=0.6,
    parents=(-1, -1, -1, -1, 0, 0, 1, 6, 6),
    child_cosine=0.5,
    circles=(3,),
    strengths=((1.0,) * 9, (0.35, 0.0, *[1.0] * 7)),
    noise=0.05,
    offset=2.0,
    teacher=Teacher(units=5, threshold=0.2, reads=2),
    seed=3,
)


def same(a, b):
    names = ("activations", "offsets", "indices", "values", "angles", "units", "outputs")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    return all(torch.equal(torch.nan_to_num(x), torch.nan_to_num(y)) for x, y in pairs if x is not None)


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 2500), start=st.integers(0, 3000), seed=st.integers(0, 2**32))
def test_a_row_is_the_same_whatever_the_batch_and_the_start(batch, start, seed):
    stream = EVERYTHING.stream(batch, seed, start=start)
    first, second = next(stream), next(stream)
    assert (first.start, second.start, len(first), len(second)) == (start, start + batch, batch, batch)
    whole = EVERYTHING.sample(start + 2 * batch, seed)
    assert same(first, whole[start : start + batch])
    assert same(second, whole[start + batch :])


def test_the_seed_decides_the_rows_and_the_world_the_directions():
    assert same(EVERYTHING.sample(50, 7), replace(EVERYTHING).sample(50, 7))
    assert not torch.equal(EVERYTHING.sample(50, 7).activations, EVERYTHING.sample(50, 8).activations)
    assert torch.equal(EVERYTHING.truth().directions, replace(EVERYTHING).truth().directions)
    assert not torch.equal(EVERYTHING.truth().directions, replace(EVERYTHING, seed=4).truth().directions)


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    EVERYTHING.sample(10)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_what_changes_noise_models_or_coefficients_leaves_the_firing_alone():
    world = EVERYTHING.sample(300)
    for change in ({"noise": 0.0}, {"strengths": ()}, {"coefficients": Constant()}, {"seed": 9}, {"width": 40}):
        assert torch.equal(replace(EVERYTHING, **change).sample(300).fires, world.fires)


@settings(max_examples=20, deadline=None)
@given(
    features=st.integers(1, 40),
    share=st.floats(0.01, 0.9),
    power=st.floats(0, 1.5),
    exact=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_features_fire_as_often_as_they_should(features, share, power, exact, seed):
    most = (np.arange(1, features + 1.0) ** -power).sum()
    active = max(1, math.floor(share * most)) if exact else share * most
    p = planted.power_law(features, active, power)
    n = 4096
    fires = Planted(4, p, exact=exact).sample(n, seed).fires
    if exact:
        assert (fires.sum(1) == active).all()
    p = torch.tensor(p)
    error = (fires.float().mean(0) - p).abs()
    assert (error <= 5 * (p * (1 - p) / n).sqrt() + 6 / n).all()  # 5 standard errors, and 6 counts for the rarest


@pytest.mark.parametrize("correlation", [0.2, 0.7, 1.0])
def test_groups_have_the_covariance_that_is_said(correlation):
    p, n = torch.tensor([0.3, 0.3, 0.1, 0.2]), 100_000
    world = Planted(4, tuple(p.tolist()), groups=((0, 1, 2),), correlation=correlation)
    fires = world.sample(n).fires.float()
    expected = torch.minimum(p[:, None], p) - p[:, None] * p
    expected[:3, :3] *= correlation
    expected[3] = expected[:, 3] = 0
    expected.diagonal().copy_(p * (1 - p))
    torch.testing.assert_close(fires.T.cov(), expected, atol=5 * 0.25 / n**0.5, rtol=0)
    assert torch.allclose(fires.mean(0), p, atol=0.008)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), exclusive=st.booleans(), seed=st.integers(0, 100))
def test_a_child_never_fires_without_its_parent_and_exclusive_ones_alone(data, exclusive, seed):
    parents, p = [-1, -1], [0.6, 0.5]
    for child in range(2, data.draw(st.integers(3, 12))):
        parents.append(data.draw(st.integers(0, child - 1)))
        p.append(p[parents[-1]] / 12)  # fits twelve exclusive siblings
    world = Planted(4, tuple(p), parents=tuple(parents), exclusive=exclusive)
    fires = world.sample(3000, seed).fires
    for child, parent in enumerate(parents):
        if parent >= 0:
            assert not (fires[:, child] & ~fires[:, parent]).any()
    if exclusive:
        for parent in range(len(p)):
            children = world.truth().children(parent)
            assert not children or fires[:, children].sum(1).max() <= 1
    rate = torch.tensor(p)
    assert ((fires.float().mean(0) - rate).abs() <= 5 * (rate * (1 - rate) / 3000).sqrt() + 6 / 3000).all()


@pytest.mark.parametrize("law", [Constant(2.0), Uniform(0.5, 1.5), Exponential(0.7), HalfNormal(1.3)])
def test_coefficients_follow_their_law(law):
    values = Planted(4, (0.5,) * 20, coefficients=law).sample(5000).values
    u = ((torch.arange(len(values)) + 0.5) / len(values)).double()
    quantiles = law.quantile(u)
    assert law.mean == pytest.approx(float(quantiles.mean()), rel=1e-3)
    if not isinstance(law, Constant):  # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in 1000
        ranks = torch.searchsorted(quantiles, values.double().sort().values) / len(values)
        assert (ranks - u).abs().max() < 1.95 / len(values) ** 0.5
    else:
        assert (values == 2.0).all()


def test_activations_are_the_codes_times_the_directions():
    batch, truth = EVERYTHING.sample(2000), EVERYTHING.truth()
    quiet, z = replace(EVERYTHING, noise=0.0).sample(2000), EVERYTHING.sample(2000).coefficients
    circle, plane = 3, truth.planes[:, 0]
    for model in range(2):
        strong = z * truth.strengths[model]
        line = strong.clone()
        line[:, circle] = 0
        angle = torch.nan_to_num(batch.angles[:, 0])
        turned = torch.stack([angle.cos(), angle.sin()], 1) @ plane[model] * strong[:, [circle]]
        expected = line @ truth.directions[model] + turned + truth.offsets[model]
        torch.testing.assert_close(quiet.activations[:, model], expected, atol=1e-5, rtol=1e-5)
        noise = batch.activations[:, model] - quiet.activations[:, model]
        assert noise.std().item() == pytest.approx(0.05, rel=0.03)
    assert torch.equal(batch.angles[:, 0].isnan(), ~batch.fires[:, circle])
    x = batch.activations[:, 0]
    torch.testing.assert_close(batch.units, torch.relu(x @ truth.encoder.T - 0.2))
    torch.testing.assert_close(batch.outputs, batch.units @ truth.decoder)


def test_directions_are_what_the_geometry_says():
    truth = EVERYTHING.truth()
    assert torch.allclose(truth.directions.norm(dim=-1), torch.ones(2, 9))
    assert torch.allclose(truth.planes @ truth.planes.mT, torch.eye(2).expand(2, 1, 2, 2), atol=1e-6)
    for child, parent in enumerate(truth.parents):
        if parent >= 0:
            assert truth.directions[0, child] @ truth.directions[0, parent] == pytest.approx(0.5, abs=1e-6)
    assert not torch.allclose(truth.directions[0], truth.directions[1])
    aligned = replace(EVERYTHING, aligned=True).truth()
    assert torch.equal(aligned.directions[0], aligned.directions[1])
    orthogonal = Planted(12, (0.1,) * 10, geometry="orthogonal", circles=(1, 4)).truth()
    axes = torch.cat([orthogonal.directions[0], orthogonal.planes[0, :, 1]])
    assert torch.allclose(axes @ axes.T, torch.eye(12), atol=1e-6)
    on = Planted(12, (0.1,) * 3, geometry="neurons", support=(3, 1, 4)).truth().directions[0]
    assert (on > 0).sum(1).tolist() == [3, 1, 4]
    assert (on > 0).sum(0).max() == 1
    assert torch.allclose(on.norm(dim=1), torch.ones(3))


def test_discrete_circles_have_so_many_places():
    angles = planted.circles(points=7).sample(2000).angles
    places = angles[~angles.isnan()] * 7 / (2 * torch.pi)
    assert torch.allclose(places, places.round(), atol=1e-4)
    assert sorted(set(places.round().int().tolist())) == list(range(7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": (1.2,)}, "1.2, which is not between 0 and 1"),
        ({"exact": True, "probabilities": (0.3, 0.3)}, "must sum to the number that fires in every row, not to 0.6"),
        ({"parents": (-1, 2, -1)}, "the parent of feature 1 is 2"),
        ({"parents": (-1, 0, -1), "probabilities": (0.1, 0.3, 0.1)}, "fires more often"),
        ({"parents": (-1, 0, 0), "probabilities": (0.1, 0.08, 0.08)}, "exclusive children of feature 0"),
        ({"groups": ((0, 1),)}, "groups and correlation go together"),
        ({"groups": ((0, 1), (1, 2)), "correlation": 0.5}, "a feature is in two groups"),
        ({"geometry": "orthogonal", "width": 2}, "3 orthogonal directions do not fit into width 2"),
        ({"geometry": "orthgonal"}, "is none of random"),
        ({"strengths": ((1.0, 1.0),)}, "strengths of model 0 has 2 entries for 3"),
        ({"labels": ("a",)}, "labels has 1 entries for 3"),
        ({"circles": (3,)}, "must be different features below 3"),
        ({"points": 7}, "0 circles"),
        ({"noise": -1.0}, "must not be negative"),
    ],
)
def test_what_cannot_be_says_why(change, message):
    world = Planted(8, (0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=message):
        replace(world, **change)


def test_rows_before_the_first_or_none_at_all_are_refused():
    with pytest.raises(ValueError, match="1 row or more"):
        EVERYTHING.sample(0)
    with pytest.raises(ValueError, match="not 5 from -1"):
        next(EVERYTHING.stream(5, start=-1))
