"""Fields on networks over grids: known shifts are found and added, at places, on average and on other grids."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import patchclamp as pc
from patchclamp.steering import Direction, DirectionError, fields, random


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = [
            nn.Conv2d(here, there, 3, padding=1, padding_mode="circular") for here, there in ((2, 5), (5, 1))
        ]
    return pc.wrap(nn.Sequential(convolutions[0], nn.GELU(), convolutions[1]))


def grids(n=10, side=8, seed=0):
    return torch.randn(n, 2, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_difference_is_that_of_the_means_at_every_place(model):
    high, low = grids() + 1, grids(seed=1)
    delta = fields.difference(model, high, low, site="module:1", batch=3)
    means = [model.run(x, record="module:1")["module:1"].mean(0) for x in (high, low)]
    assert torch.allclose(delta.vector, means[0] - means[1], atol=1e-6)
    assert delta.space == (8, 8) and delta.provenance["positive"] == 10


def test_adding_it_is_adding_it(model):
    delta = fields.difference(model, grids() + 1, grids(), site="module:1")
    x, hidden = grids(4, seed=2), nn.Sequential(*list(model.hf)[:2])
    for some in (delta, delta.dropped()):
        steered = model.run(x, do=[some.add(0.5)]).output
        assert torch.allclose(steered, model.hf[2](hidden(x) + 0.5 * some.vector), atol=1e-6)
    assert torch.equal(model.run(x, do=[delta.add(0.0)]).output, model.run(x).output)
    other = grids(4, side=12, seed=2)
    assert model.run(other, do=[delta.dropped().add()]).output.shape == (4, 1, 12, 12)
    assert model.run(other, do=[delta.resized((12, 12)).add()]).output.shape == (4, 1, 12, 12)
    with pytest.raises(ValueError, match="does not fit"):
        model.run(other, do=[delta.add()])


def test_a_dropped_field_goes_with_the_grid_and_another_does_not(model):
    delta = fields.difference(model, grids() + 1, grids(), site="module:1")
    x = grids(4, seed=2)
    for some, same in ((delta.dropped(), True), (delta, False)):
        moved = model.run(x.roll(3, -1), do=[some.add()]).output
        assert torch.allclose(moved, model.run(x, do=[some.add()]).output.roll(3, -1), atol=1e-5) == same


@given(st.integers(1, 12), st.integers(1, 12))
def test_cropping_keeps_the_middle_and_pads_with_nothing(y, x):
    whole = Direction("module:0", torch.arange(1.0, 73.0).view(2, 6, 6))
    cut = whole.cropped((y, x))
    assert cut.space == (y, x)
    if y >= 6 and x >= 6:
        assert torch.equal(cut.cropped((6, 6)).vector, whole.vector)
        assert cut.vector.sum() == whole.vector.sum()
    else:
        assert set(cut.vector.flatten().tolist()) <= {0.0, *whole.vector.flatten().tolist()}


def test_sizes_are_those_at_a_place(model):
    one = Direction("module:0", torch.tensor([3.0, 4.0]).view(2, 1, 1))
    assert one.norm == 5 and one.resized((4, 4)).norm == pytest.approx(5)
    assert one.rescaled(2.0).norm == pytest.approx(2.0)
    control = random(one.resized((4, 4)), seed=1)
    again = random(one.resized((4, 4)), seed=1)
    assert control.norm == pytest.approx(5) and torch.equal(control.vector, again.vector)
    flat = Direction("module:0", torch.ones(3, 5, 4)).resized((10, 8))
    assert torch.allclose(flat.vector, torch.ones(3, 10, 8))


def test_arithmetic_goes_over_a_grid_and_over_no_other(model):
    delta = fields.difference(model, grids() + 1, grids(), site="module:1")
    assert torch.allclose((delta + 2 * delta - delta).vector, 2 * delta.vector, atol=1e-6)
    assert (delta - delta.dropped()).dropped().norm < 1e-6
    assert delta.without(delta).norm < 1e-6 and delta.cosine(-1 * delta) == pytest.approx(-1)
    assert abs(delta.dropped().without(delta).cosine(delta)) < 1e-5
    with pytest.raises(DirectionError, match=r"has the grid \[8, 8\], module:1 \[4, 4\]"):
        delta + delta.resized((4, 4))
    with pytest.raises(DirectionError, match=r"has the grid \[8, 8\], module:1 \[\]"):
        delta - Direction("module:1", torch.ones(5))


@given(st.sampled_from([(), (1,), (4,), (1, 1), (3, 4), (1, 4)]), st.integers(0, 99))
def test_what_is_along_a_direction_can_be_read_held_and_taken_out(space, seed):
    """The same of a vector over tokens, of one at all places and of patterns in space."""
    generator = torch.Generator().manual_seed(seed)
    identity = pc.wrap(nn.Sequential(nn.Identity()))
    d = Direction("module:0", torch.randn(5, *space, generator=generator))
    x = torch.randn(2, *((7, 5) if not space else (5, *(3, 4)[-len(space) :])), generator=generator)
    left = x.shape[:-1] if not space else (2, *(b for a, b in zip(space, x.shape[2:], strict=True) if a == 1))
    assert d.project(x).shape == left
    added, held, without = (identity.run(x, do=[do]).output for do in (d.add(2.0), d.clamp(3.0), d.ablate()))
    assert torch.allclose(d.project(added) - d.project(x), torch.tensor(2 * d.norm), atol=1e-4)
    assert torch.allclose(d.project(held), torch.tensor(3.0), atol=1e-4)
    assert torch.allclose(d.project(without), torch.tensor(0.0), atol=1e-4)
    assert torch.allclose(held - without, 3.0 * (d.unit().vector + torch.zeros_like(x)), atol=1e-4)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    delta = fields.difference(model, grids() + 1, grids(), site="module:1")
    back = pc.steering.load(delta.save(tmp_path / "delta.safetensors"))
    assert torch.equal(back.vector, delta.vector)
    assert (back.site, back.fit, back.provenance) == (delta.site, delta.fit, delta.provenance)


def test_what_cannot_be_is_refused(model):
    with pytest.raises(DirectionError, match="fewer than 8"):
        fields.difference(model, grids(7), grids(), site="module:1")
    with pytest.raises(DirectionError, match="has no space"):
        Direction("module:0", torch.ones(4)).dropped()
    with pytest.raises(DirectionError, match=r"resid_post.1 is one vector \[d\], not \[2, 3\]"):
        Direction("resid_post.1", torch.ones(2, 3))
    with pytest.raises(DirectionError, match="points nowhere"):
        Direction("module:0", torch.zeros(2, 3, 3)).rescaled(1.0)
    with pytest.raises(DirectionError, match="cannot become"):
        Direction("module:0", torch.ones(2, 3, 3)).cropped((4,))
    with pytest.raises(DirectionError, match=r"the direction is for \[batch, 3"):
        model.run(grids(), do=[Direction("module:1", torch.ones(3, 1, 1)).add()])
    with pytest.raises(DirectionError, match=r"on the grid \[4, 4\]: resized"):
        model.run(grids(), do=[Direction("module:1", torch.ones(5, 4, 4)).ablate()])
    flat = pc.wrap(nn.Sequential(nn.Flatten(), nn.Linear(32, 4)))
    with pytest.raises(DirectionError, match=r"not \[batch, feature, \.\.\.space\]"):
        fields.difference(flat, grids(side=4), grids(side=4), site="module:1")


# ── what steering does ────────────────────────────────────────────────────────────────────────────────────────────────


class Extrapolation(nn.Module):
    """The frame that goes on from the last two as they did: [batch, time, y, x] to [batch, y, x]."""

    def forward(self, inputs):
        return 2 * inputs[:, -1] - inputs[:, -2]


def test_rollouts_begin_with_the_last_frame_and_feed_on_themselves(model):
    ramp = torch.arange(3.0).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    frames = fields.rolled(pc.wrap(Extrapolation()), ramp, 3, batch=1)
    assert frames.shape == (2, 4, 4, 4) and frames[1, :, 0, 0].tolist() == [2, 3, 4, 5]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        step = pc.wrap(nn.Conv2d(2, 2, 3, padding=1))
    x = grids(3)
    assert torch.allclose(fields.rolled(step, x, 2), torch.stack([x, step.hf(x), step.hf(step.hf(x))], 1), atol=1e-6)
    assert torch.allclose(fields.rolled(model, x), model.hf(x), atol=1e-6)
    with pytest.raises(DirectionError, match="which is no next frame"):
        fields.rolled(model, x, 2)
    with pytest.raises(DirectionError, match="steps=0"):
        fields.rolled(step, x, 0)


def total(frames):
    return frames[:, -1].mean((1, 2, 3))


def test_the_difference_covers_the_gap_of_a_model_that_passes_it_on(tmp_path):
    """What is added where inputs pass through unchanged is what the regimes differ by."""
    identity = pc.wrap(nn.Sequential(nn.Identity(), nn.Identity()))
    high, low = grids(seed=1) + 0.5, grids(seed=2)
    delta = fields.difference(identity, high, low, site="module:0")
    found = fields.response(identity, delta.dropped(), low, total, strengths=(-1, 0, 1), regimes=(low, high))
    rows = found.table()
    assert [row["part of the gap"] for row in rows] == pytest.approx([-1, 0, 1], abs=1e-5)
    assert rows[1]["effect"] == rows[1]["random"] == pytest.approx(float(low.mean()))
    assert all(row["interval"][0] < row["effect"] < row["interval"][1] for row in rows)
    assert found.random.shape == (3, 8) and found.random[2].std() > 0
    expected = total(low[:, None] + pc.steering.random(delta.dropped(), seed=3).vector).mean()
    assert float(found.random[2, 3]) == pytest.approx(float(expected), abs=1e-5)
    page = fields.report([found], tmp_path / "report.html", "total").read_text()
    assert "part of the gap" in found._repr_html_()
    assert "Steering: total" in page and "100% of the gap" in page and fields.rows([found])[0]["curve"] == rows
    with pytest.raises(DirectionError, match=r"gives \[10, 2\] for 10 inputs"):
        fields.response(identity, delta, low, lambda frames: frames[:, -1].mean((2, 3)))
    with pytest.raises(ValueError, match="controls=0"):
        fields.response(identity, delta, low, total, controls=0)


def test_arrays_are_read_from_files(tmp_path):
    x = grids(2)
    np.save(tmp_path / "x.npy", x.double().numpy())
    torch.save(x, tmp_path / "x.pt")
    save_file({"frames": x}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.pt", "x.safetensors"):
        assert torch.equal(fields.read(tmp_path / name), x)
    save_file({"a": x, "b": x + 1}, tmp_path / "two.safetensors")
    with pytest.raises(DirectionError, match="holds a, b: one array"):
        fields.read(tmp_path / "two.safetensors")
    with pytest.raises(DirectionError, match=r"is none of .npy, .pt, .safetensors"):
        fields.read(tmp_path / "x.csv")
