"""A recording holds what was asked for, no more memory than that, and answers by name or not at all."""

import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.model import Model, wrap
from patchclamp.positions import PositionError
from patchclamp.recording import Recording
from patchclamp.tape import TopKValues

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15]]


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(tiny.build("llama"))


def test_reductions_equal_what_they_name(model):
    x = model.run(PROMPTS, record=["resid_post.1", "mlp_post.1"])
    directions = torch.randn(3, 32)
    run = model.run(
        PROMPTS,
        record=[
            pc.keep("resid_post.1", reduce="norm"),
            pc.keep("resid_mid.1", reduce=pc.Project(directions)),
            pc.keep("mlp_post.1", reduce=pc.TopK(5), dtype=torch.bfloat16),
            pc.keep("resid_pre.2", reduce="mean"),
            pc.keep("z.1", positions=[0, -1], dtype=torch.float64, device="cpu"),
        ],
    )
    torch.testing.assert_close(run["resid_post.1"], x["resid_post.1"].norm(dim=-1))
    assert run["resid_mid.1"].shape == (2, 7, 3)
    top = run["mlp_post.1"]
    assert isinstance(top, TopKValues) and top.values.dtype == torch.bfloat16 and top.indices.dtype == torch.long
    assert torch.equal(top.indices, x["mlp_post.1"].topk(5).indices)
    means = torch.stack([x["resid_post.1"][0].mean(0), x["resid_post.1"][1, :4].mean(0)])
    torch.testing.assert_close(run["resid_pre.2"], means, rtol=1e-5, atol=1e-5)
    assert run["z.1"].dtype == torch.float64 and run["z.1"].shape == (2, 2, 4, 8)
    with pytest.raises(ValueError, match="features"):
        model.run(PROMPTS, record=pc.keep("resid_post.1", reduce=pc.Project(torch.randn(2, 16))))


def test_positions_are_those_of_real_tokens(model):
    whole = model.run(PROMPTS, record="resid_post.1")["resid_post.1"]
    kept = model.run(PROMPTS, record=["resid_post.1", "z.1.2"], positions=-1)
    assert kept["resid_post.1"].shape == (2, 1, 32)
    assert torch.equal(kept["resid_post.1"][:, 0], torch.stack([whole[0, 6], whole[1, 3]]))
    with pytest.raises(PositionError, match="as many"):
        model.run(PROMPTS, record="z.1", positions=torch.tensor([[1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]).bool())


def test_the_mean_over_real_tokens_ignores_padding(model):
    run = model.run(PROMPTS, record="resid_post.1")
    expected = torch.cat([run["resid_post.1"][0], run["resid_post.1"][1, :4]]).mean(0)
    torch.testing.assert_close(run.recording.mean("resid_post.1"), expected)
    generation = model.generate(PROMPTS, record="resid_post.1", max_new_tokens=3)
    x = generation["resid_post.1"]
    torch.testing.assert_close(generation.recording.mean("resid_post.1"), torch.cat([x[0], x[1, 3:]]).mean(0))
    reduced = model.run(PROMPTS, record=pc.keep("resid_post.1", reduce="norm")).recording
    with pytest.raises(pc.SiteError, match="reduction"):
        reduced.mean("resid_post.1")


def test_names_find_what_was_recorded_and_nothing_near_it(model):
    run = model.run(PROMPTS, record=["resid_post.0:2", "z.1", "z.0.2"])
    assert run["resid_post.*"].shape[0] == 2
    assert torch.equal(run["z.1.-1"], run["z.1"][:, :, 3])
    for missing in ("resid_post.-1", "resid_post.2", "z.0", "z.0.1", "z.0.-1", "resid_post.0:3", "q.1"):
        with pytest.raises(KeyError, match="not recorded"):
            run[missing]
        assert missing not in run
    with pytest.raises(pc.SiteError, match="there are 4"):
        run["z.1.7"]


def test_two_settings_for_one_site_are_refused(model):
    with pytest.raises(ValueError, match="twice"):
        model.run(PROMPTS, record=["resid_post.*", pc.keep("resid_post.1", positions=-1)])
    assert model.run(PROMPTS, record=["resid_post.*", "resid_post.1"])["resid_post.*"].shape[0] == 3


def test_a_small_recording_keeps_no_large_tensor_alive(model):
    long = [list(range(3, 63))] * 4
    run = model.run(long, record=["z.1.2", "pattern.1.0", "mlp_post.2.7"])
    for site in run.recording:
        tensor = run[site]
        assert tensor.untyped_storage().nbytes() <= 2 * tensor.numel() * tensor.element_size()
    last = model.run(long, record="resid_post.*", positions=-1)
    assert last.recording.nbytes == 3 * 4 * 32 * 4
    assert sum(t.untyped_storage().nbytes() for t in last.recording.tensors.values()) == last.recording.nbytes


def test_recordings_on_disk(model, tmp_path):
    run = model.run(PROMPTS, record=["resid_post.*", pc.keep("z.1", positions=-1), pc.keep("q.1", reduce="norm")])
    run.recording.save(tmp_path)
    again = Recording.load(tmp_path)
    assert list(again) == list(run.recording) and again.reduced == run.recording.reduced
    for site in again:
        assert torch.equal(again[site], run[site])
    assert torch.equal(again.mean("resid_post.1"), run.recording.mean("resid_post.1"))
    assert torch.equal(again.mean("z.1"), run.recording.mean("z.1"))
    with pytest.raises(KeyError):
        again["resid_mid.1"]


def test_what_was_recorded_is_not_written_to_by_the_model():
    falcon = wrap(tiny.build("falcon"))  # adds in place to what its MLP returned
    sites = [s for s in falcon.sites() if not s.kind.endswith(("scores", "pattern"))]
    together = falcon.run(PROMPTS, record=sites)
    for site in sites:
        assert torch.equal(falcon.run(PROMPTS, record=site)[site], together[site])


def test_wrong_forms_of_record(model):
    for wrong in (3, {"z.1": -1}):
        with pytest.raises(TypeError, match="record="):
            model.run(PROMPTS, record=wrong)
    with pytest.raises(ValueError, match="reduce='sum'"):
        pc.keep("z.1", reduce="sum")
    with pytest.raises(TypeError):
        model.run(PROMPTS, recrod="z.1")
    for name, message in (
        ("resid_pots.1", "did you mean"),
        ("resid_post.3", "there are 3: 0 to 2"),
        ("z.1.4", "there are 4: 0 to 3"),
        ("router.1", "the MLP is dense"),
        ("encoder.z.1", "no stack 'encoder'"),
        ("module:model.layers.9", "did you mean"),
        ("blocks.1.attn.hook_q", "before rotary"),
        ("resid_post", "names no layer"),
        ("embed.1", "too many parts"),
    ):
        with pytest.raises(pc.SiteError, match=message):
            model.run(PROMPTS, record=name)
    assert torch.equal(
        model.run(PROMPTS, record="blocks.1.attn.hook_rot_q")["q.1"], model.run(PROMPTS, record="q.1")["q.1"]
    )
    gpt2 = wrap(tiny.build("gpt2"))
    assert "q.1" in gpt2.run(PROMPTS, record="blocks.1.attn.hook_q")
