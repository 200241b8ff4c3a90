"""Latents that carry an answer, where what they are is known."""

import json

import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.dictionaries import Dictionary
from patchclamp.investigate import features
from patchclamp.model import wrap


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales")


@pytest.fixture(scope="module")
def halves(model):
    task = pc.tasks.gendered_pronoun(model, n=48, seed=2)
    return task[:24], task[24:]


def _whole(directions: torch.Tensor, site: str):
    """Two latents for each of some orthonormal directions: what they say together is all that is in their span."""
    both = torch.cat([directions, -directions])
    zeros = torch.zeros(len(both))
    return Dictionary(both, zeros, both, torch.zeros(both.shape[1])).as_site(site)


def test_a_dictionary_that_explains_all_brings_all_back(model, halves):
    basis = torch.linalg.qr(torch.randn(96, 96, generator=torch.Generator().manual_seed(0))).Q
    found = features.find(model, *halves, "resid_post.0", latents=_whole(basis, "resid_post.2"))
    assert found.site == "resid_post.2" and found.source == "the user's own"
    assert found.every == pytest.approx(1, abs=1e-4) and found.unexplained == pytest.approx(0, abs=1e-6)
    assert found.cards is None and set(found.rows()[0]) == {"latent", "brings back alone"}


def test_the_planted_direction_is_named_first_and_measured_exactly(model, halves):
    """One of the latents is the difference of means between clean and corrupted runs; the others are random."""
    choose, judge = halves
    site = "resid_post.3"
    clean, corrupt = (
        model.run(ids, record=site, attention_mask=choose.mask)[site][torch.arange(24), choose.positions]
        for ids in (choose.clean, choose.corrupt)
    )
    she = (choose.answers == choose.answers[0, 0]).any(1)
    push = ((clean - corrupt)[she].mean(0) - (clean - corrupt)[~she].mean(0)).float()
    noise = torch.randn(95, 96, generator=torch.Generator().manual_seed(1))
    basis = torch.linalg.qr(torch.cat([push[None], noise]).T).Q.T.contiguous()
    found = features.find(model, choose, judge, site, latents=_whole(basis, site))
    assert {0, 96} <= set(found.named[:2]) and found.holds
    source = model.run(judge.clean, record=site, attention_mask=judge.mask)
    latents = _whole(basis, site)

    def difference(ids, do=()):
        logits = model.run(ids, do=list(do), attention_mask=judge.mask).logits
        return float(pc.metrics.logit_difference(judge.at_answer(logits).float(), judge).mean())

    low, high = difference(judge.corrupt), difference(judge.clean)
    by_hand = (difference(judge.corrupt, [latents.patch(list(found.named[:2]), source)]) - low) / (high - low)
    assert found.carried[features.SIZES.index(2)] == pytest.approx(by_hand, abs=1e-4)
    assert by_hand > 0.5 > max(found.random[1])


def test_a_learned_dictionary_beats_an_untrained_one(model, halves, monkeypatch):
    monkeypatch.setattr(features, "_TEXTS", 96)
    monkeypatch.setattr(features, "_STEPS", 200)
    found = features.find(model, *halves, "resid_post.2", seed=3)
    assert "what the model writes itself" in found.source and found.width == 4 * model.d_model
    assert found.measured > max(found.controls) and len(found.random[0]) == 10
    row = found.rows()[0]
    assert row["fires"] and row["raises"]
    assert json.loads(json.dumps(found.to_dict()))["latents"][0] == row


def test_what_cannot_be_learned_is_said(model, halves, monkeypatch):
    silent = wrap(tiny.build("llama"))
    task = pc.Task.from_tokens(clean=[[3, 4, 5]] * 4, corrupt=[[6, 4, 5]] * 4, answers=[7] * 4, wrong=[8] * 4)
    assert "writes no text of its own" in features.find(silent, task, task, "resid_post.0")
    monkeypatch.setattr(features, "LIMIT", 1e6)
    assert "limit 1e+06" in features.find(model, *halves, "resid_post.2")
