"""The dose-response curve: chosen on one half, judged on the other, within a budget, beside random directions."""

import json

import pytest
import torch

import patchclamp as pc
from patchclamp.steering import difference, load, tune
from patchclamp.steering.behaviour import log_odds

NEUTRAL = ["Mary went to the store.", "The day was long, and John had a cat.", "Anna found a key at the park."]
PROMPTS = [f"{name} went to the" for name in ("Mary", "John", "Anna", "Tom", "Paul", "Emma", "Mark", "Lucy")]


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales")


@pytest.fixture(scope="module")
def found(model):
    token = model.tokenizer(" park")["input_ids"][-1]
    unembedding = model.weights.W_U[:, token]
    direction = pc.steering.Direction("resid_post.3", unembedding, "unembedding").rescaled(5.0)
    return tune(
        model, direction, log_odds(PROMPTS, [token]), neutral=NEUTRAL, strengths=(0, 0.5, 1, 4), controls=3, budget=0.5
    )


def test_the_response_rises_with_the_dose_and_random_directions_do_not(found):
    effects = [dose.effect for dose in found.doses]
    assert effects == sorted(effects) and effects[2] > effects[0] + 0.5
    assert max(found.doses[2].random) < effects[2]
    assert found.doses[0].rise == found.doses[0].kl == 0


def test_the_strength_keeps_to_the_budget(found, model):
    assert found.at_strength.rise <= found.budget
    assert any(row["rise"] > found.budget for row in found.tried)
    with pytest.raises(ValueError, match="every strength costs more"):
        tune(model, found.direction, log_odds(PROMPTS, [5]), neutral=NEUTRAL, strengths=(4.0,), controls=0, budget=0.01)


def test_it_is_kept_and_drawn(found, tmp_path):
    found.save(tmp_path)
    kept = json.loads((tmp_path / "response.json").read_text())
    assert kept["site"] == "resid_post.3" and len(kept["curve"]) == 4
    assert torch.equal(load(tmp_path / "direction.safetensors").vector, found.direction.vector)
    assert len(found.plot().data) >= 2 and "strength" in found._repr_html_()
    page = found.report(tmp_path / "report.html").read_text()
    assert "resid_post.3" in page and "prompts that chose nothing" in page


def test_the_site_is_chosen_among_several(model):
    high = [f"{name} went to the park." for name in ("Mary", "John", "Anna", "Tom", "Paul", "Emma", "Mark", "Lucy")]
    low = [text.replace("park", "store") for text in high]
    several = [difference(model, high, low, site=f"resid_post.{layer}") for layer in (0, 3)]
    token = model.tokenizer(" park")["input_ids"][-1]
    best = tune(model, several, log_odds(PROMPTS, [token]), neutral=NEUTRAL, strengths=(0, 1), controls=1, budget=5.0)
    scores = {(row["site"], row["strength"]): row["effect"] for row in best.tried}
    assert scores[best.direction.site, best.strength] == max(scores.values())
