"""Intervals are what they say, from lists, arrays and tensors alike."""

import math

import numpy as np
import pytest
import torch

from patchclamp.studies import Measured


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = [Measured.mean(generator.normal(3.0, 2.0, 40)) for _ in range(300)]
    covered = np.mean([low <= 3.0 <= high for low, high in (m.interval for m in samples)])
    assert 0.88 <= covered <= 0.98


def test_the_mean_of_values_that_agree_has_no_width_and_the_same_seed_gives_the_same_interval():
    assert Measured.mean([2.0, 2.0, 2.0]).interval == (2.0, 2.0)
    values = list(range(20))
    assert Measured.mean(values, seed=1) == Measured.mean(values, seed=1)
    assert Measured.mean(values, seed=1).interval != Measured.mean(values, seed=2).interval


def test_a_share_of_all_hits_still_has_an_interval():
    low, high = Measured.share([True] * 64).interval
    assert 0.9 < low < 1 and high == 1
    assert Measured.share([1, 0, 1, 0]).value == 0.5
    with pytest.raises(ValueError, match="true or false"):
        Measured.share([0.5, 1])


def test_lists_arrays_and_tensors_are_one():
    wanted = Measured.mean([1.0, 2.0, 4.0], control=[0.0, 1.0])
    assert Measured.mean(np.array([1.0, 2.0, 4.0]), control=np.array([0.0, 1.0])) == wanted
    tensor = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert Measured.mean(tensor, control=torch.tensor([0.0, 1.0])) == wanted
    assert Measured.mean(list(tensor), control=[0.0, 1.0]) == wanted


def test_gap_is_the_largest_difference_and_shapes_must_agree():
    assert Measured.gap(torch.tensor([1.0, -2.0]), [1.0, -2.5]).value == 0.5
    assert Measured.gap(0, 0, control=([0, 3], [0, 1])).control == 2
    with pytest.raises(ValueError, match=r"\[2\] with \[3\]"):
        Measured.gap([1, 2], [1, 2, 3])
    assert math.isnan(Measured.gap([1.0, float("nan")], [1.0, 1.0]).value)


def test_a_number_has_its_controls_range():
    m = Measured.number(0.9, control=[0.1, 0.3, 0.2])
    assert (m.interval, m.control_interval) == ((0.9, 0.9), (0.1, 0.3))
    assert m.control == pytest.approx(0.2)


def test_what_was_not_measured_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Measured.mean([])
    with pytest.raises(ValueError, match="no interval"):
        Measured.mean([1.0])
