"""Affine maps: a planted line is recovered, one site trained is the closed form, and strength 0 changes no bit."""

import pytest
import torch

import patchclamp as pc
from patchclamp.steering import DirectionError, affine

SOURCE = [f"{name} is a stupid idiot." for name in ("Mary", "John", "Anna", "Tom", "Paul", "Emma", "Mark", "Lucy")]
TARGET = [f"{name} is a gentle hero." for name in ("Mary", "John", "Anna", "Tom", "Paul", "Emma", "Mark", "Lucy")]


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales")


def test_a_planted_line_is_recovered_whatever_the_order():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    slope, offset = torch.rand(2, 5, generator=generator, dtype=torch.float64) + 0.5
    target = (slope * source + offset)[torch.randperm(64, generator=generator)]
    weight, bias = affine.fitted(source, target)
    torch.testing.assert_close(weight, slope)
    torch.testing.assert_close(bias, offset)
    assert float(affine.wasserstein(weight * source + bias, target).max()) < 1e-20
    assert float(affine.wasserstein(source, source.flip(0)).max()) == 0


def test_a_column_that_is_constant_is_moved_and_not_stretched():
    weight, bias = affine.fitted(torch.ones(9, 1), torch.arange(9.0)[:, None])
    assert (float(weight), float(bias)) == (1.0, 3.0)


def test_the_closed_form_halves_the_distance_and_strength_0_changes_no_bit(model):
    maps = affine.closed_form(model, SOURCE, TARGET, sites="resid_post.1")
    before, after = (affine.distance(model, m, SOURCE, TARGET, sites="resid_post.1") for m in (None, maps))
    assert after < 0.5 * before
    clean, none, half = (model.run(SOURCE, do=do).logits for do in ([], maps.apply(0.0), maps.apply(0.5)))
    assert torch.equal(clean, none)
    assert not torch.equal(clean, half)


def test_training_lowers_the_distance_and_the_penalty_leaves_units_alone(model):
    sites = "resid_post.{1,2}"
    maps = affine.trained(model, SOURCE, TARGET, sites=sites, steps=30, rate=0.05)
    before, after = (affine.distance(model, m, SOURCE, TARGET, sites=sites) for m in (None, maps))
    assert after < 0.5 * before
    assert maps.changed == 1.0
    sparse = affine.trained(model, SOURCE, TARGET, sites=sites, steps=30, rate=0.05, sparse=0.5)
    assert 0 < sparse.changed < 0.5
    nothing = affine.trained(model, SOURCE, TARGET, sites=sites, steps=5, groups=1e6)
    assert nothing.changed == 0.0


def test_the_first_token_is_neither_averaged_nor_mapped(model):
    maps = affine.closed_form(model, SOURCE, TARGET, sites="resid_post.1")
    clean, mapped = (model.run(SOURCE, record="resid_post.1", do=do)["resid_post.1"] for do in ([], maps.apply()))
    assert torch.equal(clean[:, 0], mapped[:, 0]) and not torch.equal(clean[:, 1], mapped[:, 1])
    one = model.run(SOURCE[0], record="resid_post.1")["resid_post.1"]
    torch.testing.assert_close(affine.pooled(model, SOURCE, "resid_post.1")["resid_post.1"][0], one[0, 1:].mean(0))


def test_training_gets_near_the_least_distance_in_few_steps(model):
    """Of one site, the closed form is the least."""
    least, ours = (
        affine.distance(model, fit(model, SOURCE, TARGET, sites="resid_post.1"), SOURCE, TARGET, sites="resid_post.1")
        for fit in (affine.closed_form, affine.trained)
    )
    assert ours <= 1.02 * least


def test_what_cannot_be_matched_is_refused(model):
    with pytest.raises(DirectionError, match="as many rows"):
        affine.wasserstein(torch.zeros(3, 1), torch.zeros(4, 1))
    with pytest.raises(DirectionError, match="as many texts"):
        affine.closed_form(model, SOURCE, TARGET * 2)
    with pytest.raises(DirectionError, match="one token long"):
        affine.pooled(model, [*SOURCE, ""], "resid_post.1")
    with pytest.raises(DirectionError, match="fewer than 8"):
        affine.pooled(model, SOURCE[:3], "resid_post.1")
