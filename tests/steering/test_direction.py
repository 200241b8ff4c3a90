"""A direction is data: lengths, arithmetic, what it does to a run, and the file it is kept in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchclamp as pc
from patchclamp.steering import Direction, DirectionError, load, random, writes
from tiny import build


@pytest.fixture(scope="module")
def model():
    return pc.wrap(build("llama"))


def direction(model, seed=0, site="resid_post.1"):
    generator = torch.Generator().manual_seed(seed)
    return Direction(site, torch.randn(model.d_model, generator=generator), "made up", {"seed": seed})


IDS = torch.tensor([[5, 9, 3, 7], [2, 8, 1, 4]])


@given(st.floats(0.1, 10), st.integers(0, 50))
def test_lengths_and_arithmetic(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (Direction("resid_post.1", torch.randn(8, generator=generator)) for _ in range(2))
    assert a.rescaled(norm).norm == pytest.approx(norm, rel=1e-5)
    assert a.rescaled(norm).cosine(a) == pytest.approx(1, abs=1e-5)
    assert torch.allclose((a + b - b).vector, a.vector, atol=1e-5)
    assert torch.equal((2 * a).vector, (a * 2).vector)
    assert abs(a.without(b).cosine(b)) < 1e-4


def test_adding_moves_the_projection_by_the_norm(model):
    d = direction(model)
    clean, steered = (model.run(IDS, record=d.site, do=do)[d.site] for do in ([], [d.add(2.0)]))
    assert torch.allclose(d.project(steered) - d.project(clean), torch.tensor(2 * d.norm), atol=1e-4)


def test_strength_zero_changes_no_bit_and_clamping_holds_the_component(model):
    d = direction(model)
    assert torch.equal(model.run(IDS, do=[d.add(0.0)]).logits, model.run(IDS).logits)
    held = model.run(IDS, record=d.site, do=[d.clamp(3.0)])[d.site]
    assert torch.allclose(d.project(held), torch.tensor(3.0), atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_ablated_everywhere_it_is_nowhere_in_the_stream(family):
    model = pc.wrap(build(family))
    d = direction(model)
    ids = IDS % 20
    run = model.run(ids, record="resid_post.*", do=d.ablated(model))
    assert all(
        float(d.project(run[site]).abs().max()) < 1e-5 * float(run[site].norm(dim=-1).max()) for site in run.recording
    )
    assert float(d.project(model.run(ids, record=d.site)[d.site]).abs().max()) > 0.01


def test_the_writes_sum_to_the_stream(model):
    run = model.run(IDS, record=[*map(str, writes(model)), "resid_post.-1"])
    total = sum(run[site] for site in writes(model))
    assert torch.allclose(total, run[f"resid_post.{model.n_layers - 1}"], atol=1e-5)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    d = direction(model)
    back = load(d.save(tmp_path / "sub" / "d.safetensors"))
    assert (back.site, back.fit, back.provenance) == (d.site, d.fit, d.provenance) and torch.equal(
        back.vector, d.vector
    )


def test_random_directions_have_the_norm_and_the_seed(model):
    d = direction(model)
    a, b, c = random(d, seed=1), random(d, seed=1), random(d, seed=2)
    assert torch.equal(a.vector, b.vector) and not torch.equal(a.vector, c.vector)
    assert a.norm == pytest.approx(d.norm, rel=1e-5) and a.site == d.site


def test_what_does_not_fit_is_refused(model, tmp_path):
    d = direction(model)
    with pytest.raises(DirectionError, match=r"one is at resid_post.1, the other at resid_post.0"):
        d + direction(model, site="resid_post.0")
    with pytest.raises(DirectionError, match="one vector"):
        Direction("resid_post.1", torch.zeros(2, 3))
    with pytest.raises(DirectionError, match="not finite"):
        Direction("resid_post.1", torch.tensor([float("nan")]))
    with pytest.raises(DirectionError, match="points nowhere"):
        Direction("resid_post.1", torch.zeros(3)).unit()
    with pytest.raises(DirectionError, match="width of the residual stream"):
        Direction("z.1.0", torch.ones(3)).ablated(model)
    with pytest.raises(pc.SiteError, match="resid_post"):
        Direction("resid_pots.1", torch.ones(3))
    from safetensors.torch import save_file

    save_file({"vector": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(DirectionError, match="holds no direction"):
        load(tmp_path / "x.safetensors")
