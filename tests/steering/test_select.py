"""The selection finds the direction that does it, and says why others are out."""

import pytest

import patchclamp as pc
from patchclamp.organisms.tales import chat, world
from patchclamp.steering import DirectionError, select
from patchclamp.studies.steering.refusal_direction import _answers, _prompts, _worded


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales-chat")


@pytest.fixture(scope="module")
def found(model):
    tokens = model.tokenizer(chat.REFUSAL, add_special_tokens=False)["input_ids"][:1]
    sides = [_prompts(verbs, held_out=False)[::3] for verbs in (world.REFUSED, world.HARMLESS)]
    return select(model, *sides, tokens=tokens, positions=(-1, -2), seed=0)


def test_the_chosen_direction_turns_refusal_off_and_on(found):
    chosen, (refused, answered) = found.chosen, found.clean
    assert chosen.bypass < 0 < refused and answered < 0 < chosen.induce and chosen.kl < 0.1
    assert chosen.bypass == min(row["bypass"] for row in found.table() if row["passes"])


def test_what_is_too_late_or_moves_other_text_does_not_pass(found, model):
    late = [c for c in found.candidates if c.layer >= 0.8 * model.n_layers]
    assert all(c.refused for c in late)
    assert all(c.kl <= 0.1 and c.induce >= 0 for c in found.candidates if not c.refused)


def test_what_costs_neutral_text_does_not_pass(found, model):
    tokens = model.tokenizer(chat.REFUSAL, add_special_tokens=False)["input_ids"][:1]
    sides = [_prompts(verbs, held_out=False)[::3] for verbs in (world.REFUSED, world.HARMLESS)]
    texts = ["Mary went to the store.", "The day was long, and John had a cat.", "Anna found a key at the park."]
    strict = select(model, *sides, tokens=tokens, positions=(-1, -2), neutral=texts, budget=0.02, seed=0)
    assert strict.chosen.rise <= 0.02 and strict.chosen.bypass >= found.chosen.bypass
    assert any("neutral text" in c.refused for c in strict.candidates) or strict.direction.site == found.direction.site


def test_where_none_passes_the_reasons_are_told(model):
    prompts = _prompts(world.HARMLESS, held_out=False)
    with pytest.raises(DirectionError, match=r"none of 3 candidates passes: .*adding it does not bring"):
        select(model, prompts[:24], prompts[24:48], tokens=[5], positions=(-1,), seed=0)


def test_what_takes_a_behaviour_that_should_stay_does_not_pass(found, model):
    tokens = model.tokenizer(chat.REFUSAL, add_special_tokens=False)["input_ids"][:1]
    sides = [_prompts(verbs, held_out=False)[::3] for verbs in (world.REFUSED, world.HARMLESS)]
    keeps = _answers(_worded(world.HARMLESS, held_out=False)[::6])
    careful = select(model, *sides, tokens=tokens, positions=(-1, -2), keeps=keeps, seed=0)
    clean, left, lost = (
        float(keeps.measure(model, do).mean())
        for do in ([], careful.direction.ablated(model), found.direction.ablated(model))
    )
    assert careful.chosen.kept == left / clean >= 0.98 > lost / clean
    assert any(keeps.name in candidate.refused for candidate in careful.candidates)
