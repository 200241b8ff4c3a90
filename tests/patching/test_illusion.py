"""The test for dormant pathways: on Makelov's toy, where all effects are known, and in models."""

import pytest
import torch
from torch import nn

import patchclamp as pc
from patchclamp.patching import Pairs, Subspace, illusion, mean_direction, random_direction
from patching import cases


class Toy(nn.Module):
    """y = 2 h2 + c, h = (c, 0, 0, 0): the concept goes past the component, whose second direction is dormant."""

    def __init__(self):
        super().__init__()
        self.component = nn.Linear(1, 4, bias=False)
        with torch.no_grad():
            self.component.weight.copy_(torch.tensor([[1.0], [0], [0], [0]]))

    def forward(self, c):
        return 2 * self.component(c)[:, 1:2] + c


READS = torch.tensor([[0.0], [2.0], [0.0], [0.0]])


def toy_with(direction: list[float]):
    model = pc.wrap(Toy())
    c = torch.tensor([[1.0], [3.0]])
    pairs = Pairs(model, c, -c, measure=lambda y: y[:, 0])
    return illusion(pairs, Subspace.spanned("module:component", torch.tensor(direction), model), matrix=READS)


def test_the_toy_is_seen_through():
    found = toy_with([1.0, 1.0, 0.0, 0.0])
    assert found.whole == pytest.approx(1, abs=1e-6) and found.flipped == 1
    assert abs(found.row) < 1e-6 and abs(found.null) < 1e-6 and abs(found.component) < 1e-6
    assert found.row_share == pytest.approx(0.5**0.5) and found.null_share == pytest.approx(0.5**0.5)
    assert found.row_moves == 0 and found.null_moves == pytest.approx(1)
    assert found.verdict == "illusory" and "illusory" in str(found)


def test_a_direction_without_effect_is_neither():
    assert toy_with([0.0, 0.0, 1.0, 0.0]).verdict == "no effect"
    assert toy_with([1.0, 0.0, 0.0, 0.0]).verdict == "no effect"


def test_in_the_stream_every_direction_is_its_own_row_part():
    pairs = Pairs.of(cases.model("llama"), cases.task())
    found = illusion(pairs, mean_direction(pairs, "resid_post.1", pos=-1), pos=-1, random=3)
    assert found.row == found.whole and found.row_share == pytest.approx(1) and found.null_share == 0
    assert found.null != found.null  # nan: there is none


def test_random_pushes_are_as_large_behind_the_readout():
    """In a linear model the size of the push is its effect's, up to its direction: with one output, equal."""
    found = toy_with([1.0, 1.0, 0.0, 0.0])
    assert all(abs(effect) == pytest.approx(1, abs=1e-5) for effect in found.matched)


def test_on_mlp_neurons_of_a_model_the_null_part_does_nothing():
    pairs = Pairs.of(cases.model("gpt2"), cases.task())  # 128 neurons, 32 dimensions
    found = illusion(pairs, random_direction(pairs, "mlp_post.1", rank=2, seed=0), pos=slice(3, None), random=2)
    assert abs(found.null) < 1e-4 and found.null_share**2 + found.row_share**2 == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="at least 1"):
        illusion(pairs, random_direction(pairs, "mlp_post.1"), random=0)
