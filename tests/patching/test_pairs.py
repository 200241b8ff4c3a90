"""Effects between a base and a source run: the scale of a sweep, on models and on plain modules."""

import numpy as np
import pytest
import torch
from torch import nn

import patchclamp as pc
from patchclamp.patching import Pairs
from patching import cases


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_effect_is_that_of_a_sweep(direction):
    model, task = cases.model("llama"), cases.task(ragged=True)
    pairs = Pairs.of(model, task, direction=direction)
    swept = pc.patching.sweep(model, task, "mlp_out.*", positions="all", direction=direction).values
    mine = [pairs.effect(pc.patch(f"mlp_out.{i}", pairs.activations(f"mlp_out.{i}")[1])) for i in range(3)]
    expected = swept if direction == "denoise" else 1 - swept  # a sweep's 1 is the clean run, ours the source run
    assert np.allclose(mine, expected, atol=1e-4)


def test_all_of_the_source_flips_every_answer_and_nothing_flips_none():
    pairs = Pairs.of(cases.model("gpt2"), cases.task())
    everything = pc.patch("resid_pre.0", pairs.activations("resid_pre.0")[1])
    assert pairs.effect(everything) == pytest.approx(1) and pairs.flipped(everything) == 1
    assert pairs.effect([]) == 0 and pairs.flipped([]) == 0


def test_a_plain_module_has_pairs():
    model = pc.wrap(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    inputs = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    pairs = Pairs(model, inputs, -inputs, measure=lambda y: y[:, 0])
    assert pairs.effect(pc.patch("module:0", pairs.activations("module:0")[1])) == pytest.approx(1)


def test_errors_say_what_was_meant():
    pairs = Pairs.of(cases.model("gpt2"), cases.task())
    with pytest.raises(ValueError, match="3 sites"):
        pairs.activations("mlp_out.*")
    with pytest.raises(ValueError, match="denoise"):
        Pairs.of(cases.model("gpt2"), cases.task(), direction="backwards")  # type: ignore[arg-type]
