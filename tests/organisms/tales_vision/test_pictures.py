import itertools
import random

import numpy as np
import pytest
import torch

from patchclamp.organisms.tales import world
from patchclamp.organisms.tales_vision import pictures


def test_everybody_of_whom_facts_are_known_has_a_picture():
    assert pictures.people() == [person.name for person in world.people()[0]]
    with pytest.raises(LookupError, match="no picture of 'Nobody Atall'"):
        pictures.features("Nobody Atall")


def test_any_two_people_differ_in_two_features_and_in_many_pixels():
    codes = [tuple(pictures.features(name).values()) for name in pictures.people()]
    drawings = [pictures.draw(name) for name in pictures.people()]
    for (a, x), (b, y) in itertools.combinations(zip(codes, drawings, strict=True), 2):
        assert sum(i != j for i, j in zip(a, b, strict=True)) >= 2
        assert (x - y).abs().sum() >= 6


def test_every_form_of_a_feature_is_drawn_differently_and_inside():
    for feature in pictures.FEATURES:
        faces = [
            pictures.face({name: form if name == feature else 0 for name in pictures.FEATURES})
            for form in range(pictures.FORMS)
        ]
        for one, other in itertools.combinations(faces, 2):
            assert np.abs(one - other).sum() >= 4, feature
        for face in faces:  # so that no shift by a pixel wraps around
            assert face[[0, -1]].sum() == face[:, [0, -1]].sum() == 0


def test_the_same_generator_gives_the_same_pixels_and_noise_stays_small():
    one, again, other = (pictures.draw("John Miller", random.Random(seed)) for seed in (1, 1, 2))
    assert one.equal(again) and not one.equal(other)
    assert one.shape == (1, 24, 24) and one.dtype == torch.float32
    clean = pictures.draw("John Miller")
    assert set(clean.unique().tolist()) == {0.0, 1.0}


def test_pictures_are_shifted_by_less_than_a_pixel():
    row, column = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")

    def centre(ink):
        return torch.stack([(ink * row).sum(), (ink * column).sum()]) / ink.sum()

    clean = pictures.draw("John Miller")[0]
    moved = torch.stack([centre(pictures.draw("John Miller", random.Random(seed))[0]) for seed in range(60)])
    moved = moved - centre(clean)
    assert moved.abs().max() < 1.8 and (moved.std(0) > 0.3).all() and (moved.mean(0).abs() < 0.3).all()
