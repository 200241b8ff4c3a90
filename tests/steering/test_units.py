"""Units: momentum counts signs and nothing else, planted units come first, and strength 0 changes no bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchclamp as pc
from patchclamp.steering import DirectionError, Units, momentum, units


def test_planted_units_have_the_most_momentum():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(200, 64, generator=generator)
    high = torch.randn(200, 64, generator=generator)
    high[:, :5] += 4
    high[:, 5:10] -= 4
    found = Units({"mlp_post.0": momentum(high, low)}).most(10)
    values = found.momentum["mlp_post.0"]
    assert set(values.nonzero()[:, 0].tolist()) == set(range(10))
    assert bool((values[:5] > 0.9).all()) and bool((values[5:10] < -0.9).all())


@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_positive_rescaling_changes_nothing_and_swapping_sides_the_sign(factor, seed):
    high, low = torch.randn(2, 11, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(momentum(factor * high, factor * low), momentum(high, low))
    assert torch.equal(momentum(low, high), -momentum(high, low))


def test_ties_have_none():
    assert momentum(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])).tolist() == [0.0]
    assert momentum(torch.ones(3, 1), torch.ones(3, 1)).tolist() == [0.0]


def test_what_is_applied_is_its_definition():
    model = pc.load("organism:tales")
    texts = [[f"{name} is a {word}." for name in ("Mary", "John", "Anna")] for word in ("hero", "fool")]
    found = units(model, *texts, sites=["mlp_post.1", "z.2"], pos=-2)
    assert {site: len(values) for site, values in found.momentum.items()} == {"mlp_post.1": 256, "z.2": 96}
    few = found.most(7)
    assert few.count == 7 and found.drawn(7, seed=1).count <= 7
    own, zero, steered = (
        model.run(texts[0], do=do, record=["mlp_post.1", "z.2"]) for do in ([], found.apply(0.0), found.apply(0.5))
    )
    assert torch.equal(own.logits, zero.logits)
    momenta = {site: 0.5 * found.momentum[site].reshape(own[site].shape[2:]) for site in ("mlp_post.1", "z.2")}
    moved = own["mlp_post.1"] + momenta["mlp_post.1"] * own["mlp_post.1"].abs()
    torch.testing.assert_close(steered["mlp_post.1"], moved)
    for published, size in ((False, own["z.2"].abs()), (True, own["z.2"])):
        do = found.apply(0.5, published=published)[1:]
        torch.testing.assert_close(model.run(texts[0], do=do, record="z.2")["z.2"], own["z.2"] + momenta["z.2"] * size)


def test_a_unit_below_zero_moves_as_its_momentum_says_and_as_published_the_other_way():
    model = pc.load("organism:tales")
    some = Units({"resid_post.1": torch.ones(96)})
    own = model.run("The film was", record="resid_post.1")["resid_post.1"]
    ours, theirs = (
        model.run("The film was", do=some.apply(2.0, published=way), record="resid_post.1")["resid_post.1"]
        for way in (False, True)
    )
    assert bool((own < 0).any()) and bool((ours >= own).all()) and bool((ours > own).any())
    assert torch.equal(theirs < own, own < 0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DirectionError, match="k=3 of 2"):
        Units({"mlp_post.0": torch.ones(2)}).most(3)
    with pytest.raises(DirectionError, match="same shape"):
        momentum(torch.ones(2, 1), torch.ones(3, 1))
