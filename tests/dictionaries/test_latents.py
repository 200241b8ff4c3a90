"""Latents are a site: what is done to them changes their share of the activation and nothing else."""

import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.dictionaries import Dictionary

PROMPTS = torch.tensor([[3, 5, 7, 9, 11], [2, 4, 6, 8, 10]])


@pytest.fixture(scope="module")
def model():
    return pc.wrap(tiny.build("gpt2"))


@pytest.fixture(scope="module")
def latents(model):
    d, generator = model.d_model, torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(3 * d, d, generator=generator), dim=1)
    dictionary = Dictionary(
        rows, torch.zeros(3 * d), rows, torch.randn(d, generator=generator) * 0.1, select="topk", k=6
    )
    return dictionary.as_site("resid_post.1")


def active(latents, run):
    return int(latents.codes(run).indices[0, -1, 0])


def test_a_clamped_latent_moves_the_activation_along_its_row_and_keeps_the_error(model, latents):
    run = model.run(PROMPTS, record=latents.site)
    latent = active(latents, run)
    now = latents.codes(run).of(latent)
    out = model.run(PROMPTS, record=latents.site, do=[latents.clamp(latent, 2.5)])
    moved = out[latents.site] - run[latents.site]
    assert torch.allclose(moved, (2.5 - now)[..., None] * latents.dictionary.W_dec[latent], atol=1e-5)
    assert not torch.allclose(out.logits, run.logits)
    nothing = model.run(PROMPTS, do=[latents.scale(latent, 1.0)])
    assert torch.allclose(nothing.logits, run.logits, atol=1e-6)


def test_positions_are_respected(model, latents):
    run = model.run(PROMPTS, record=latents.site)
    latent = active(latents, run)
    out = model.run(PROMPTS, record=latents.site, do=[latents.ablate(latent, pos=-1)])
    assert torch.equal(out[latents.site][:, :-1], run[latents.site][:, :-1])
    share = latents.codes(run).of(latent)[:, -1:] * latents.dictionary.W_dec[latent]
    assert torch.allclose(out[latents.site][:, -1], run[latents.site][:, -1] - share, atol=1e-5)


def test_patching_every_latent_and_the_error_gives_the_source(model, latents):
    run = model.run(PROMPTS, record=latents.site)
    other = model.run(PROMPTS.flip(0), record=latents.site)
    every = list(range(latents.dictionary.width))
    out = model.run(PROMPTS, record=latents.site, do=[latents.patch(every, other)])
    error = latents.error(run) - latents.error(other)
    assert torch.allclose(out[latents.site], other[latents.site] + error, atol=1e-4)
    one = active(latents, other)
    out = model.run(PROMPTS, record=latents.site, do=[latents.patch(one, other)])
    change = latents.codes(other).of(one) - latents.codes(run).of(one)
    expected = run[latents.site] + change[..., None] * latents.dictionary.W_dec[one]
    assert torch.allclose(out[latents.site], expected, atol=1e-5)


def test_replacing_leaves_out_the_error_and_adding_is_steering(model, latents):
    run = model.run(PROMPTS, record=latents.site)
    out = model.run(PROMPTS, record=latents.site, do=[latents.replace()])
    assert torch.allclose(out[latents.site], run[latents.site] - latents.error(run), atol=1e-5)
    out = model.run(PROMPTS, record=latents.site, do=[latents.add([1, 2], 3.0)])
    rows = latents.dictionary.W_dec[[1, 2]].sum(0)
    assert torch.allclose(out[latents.site], run[latents.site] + 3 * rows, atol=1e-5)


def test_wrong_latents_and_dictionaries_are_refused(model, latents):
    with pytest.raises(IndexError, match=r"latents \[10000\] of a dictionary of"):
        latents.clamp(10_000, 1.0)
    d = latents.dictionary
    transcoder = Dictionary(d.W_enc, d.b_enc, d.W_dec[:, :4], d.b_dec[:4])
    with pytest.raises(ValueError, match="pattern of sites"):
        d.as_site("resid_post.*")
    with pytest.raises(ValueError, match="explains what it reads"):
        transcoder.as_site("resid_post.1")
    short = model.run(PROMPTS[:, :3], record=latents.site)
    with pytest.raises(ValueError, match="prompts and positions"):
        model.run(PROMPTS, do=[latents.patch(0, short)])
