import json
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.tales import world
from patchclamp.organisms.tales_vision import exam, pictures, train

SMALL = train.Recipe("", steps=4, naming_steps=2, batch=6, layers=1, width=16, hidden=16, heads=2, warmup=1)


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales-vision")


@pytest.fixture(scope="module")
def record():
    return organisms.recipe("tales-vision")


def test_it_loads_quickly_and_certifies(model):
    began = time.perf_counter()
    pc.load("organism:tales-vision")
    assert time.perf_counter() - began < 2
    assert model.certify().holds
    assert type(model.hf).__name__ == "LlavaForConditionalGeneration"
    eye = pc.wrap(model.hf.model.vision_tower)  # by itself, the encoder has all the sites of a transformer
    assert eye.certify().holds and len(eye.sites("z.*.*")) == 2 * 4


def test_its_language_model_is_tales(model, record):
    base = load_file(organisms.path("tales") / "model.safetensors")
    own = {key.replace("model.language_model.", "model."): value for key, value in model.hf.state_dict().items()}
    assert record["base"] == train.base_hash()
    assert all(own[key].half().equal(value) for key, value in base.items())
    text = "Mary gave the book to John."
    tales = pc.load("organism:tales").run(text).logits
    assert torch.allclose(model.run(text).logits, tales, atol=1e-5)


def test_facts_are_known_by_name_and_by_picture(model, record):
    scores = exam.examine(model.hf, model.tokenizer)
    assert scores == pytest.approx(record["exam"], abs=0.02)
    for kind in ("facts by name", "facts by picture", "name by picture"):
        assert scores[kind] >= 0.9, kind


def test_after_naming_alone_it_sees_who_it_is_and_cannot_say_what_it_knows():
    (step,) = organisms.checkpoints("tales-vision")
    row = next(row for row in organisms.log("tales-vision") if row["step"] == step)
    named = row["name by picture"]
    assert named >= 0.85
    assert row["facts by name"] >= 0.9 and row["facts by picture"] <= named - 0.2


def test_the_picture_decides(model):
    """The same questions with the pictures of other people get the answers of those."""
    table, people = world.fact_table(), pictures.people()
    asked = []
    for question in exam.questions()["facts by picture"]:
        relation = next(r for r, texts in table.templates.items() if question.text in texts)
        other = people[(people.index(question.subject) + 1) % len(people)]
        answer = world.answers()[other, relation]
        if exam.taught(other, relation) and answer != question.answer:
            asked.append(replace(question, subject=other, answer=answer))
    given = exam.inputs(model.tokenizer, asked)
    last = given["attention_mask"].sum(1) - 1
    guess = model.run(given).logits[torch.arange(len(asked)), last].argmax(-1)
    assert len(asked) > 100 and (guess == exam.answers(model.tokenizer, asked)).float().mean() > 0.9


def test_sites_are_recorded_and_patched_with_pictures(model):
    asked = exam.questions()["facts by picture"][:8]
    given = exam.inputs(model.tokenizer, asked)
    clean = model.run(given, record=["resid_post.*", "module:model.multi_modal_projector"])
    assert torch.equal(clean.logits, model.hf(**given).logits)
    projected = clean["module:model.multi_modal_projector"]
    at = (given["input_ids"][0] == model.hf.config.image_token_id).nonzero()[:, 0]
    embedded = model.run(given, record="resid_pre.0")["resid_pre.0"]
    assert torch.allclose(embedded[0, at], projected[0], atol=1e-6)
    moved = model.run(given, do=[pc.ablate("module:model.multi_modal_projector")])
    assert (moved.logits - clean.logits).abs().max() > 0.1


def test_a_recipe_for_another_language_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the recipe is for a language model feed"):
        train.train("tales-vision", tmp_path, recipe=replace(SMALL, base="feed"), progress=False)


def test_only_encoder_and_projector_learn_and_an_interrupted_run_ends_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(exam, "examine", lambda hf, tokenizer: {})
    recipe = replace(SMALL, base=train.base_hash())
    whole = train.train("tales-vision", tmp_path / "whole", recipe=recipe, progress=False)
    train.train("tales-vision", tmp_path / "parts", recipe=recipe, stop_at=3, progress=False)
    assert train.train("tales-vision", tmp_path / "parts", recipe=recipe, progress=False) == whole
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(one[key].equal(two[key]) for key in one)
    before = train.untrained(recipe, AutoTokenizer.from_pretrained(train.BASE)).state_dict()
    snapshot = load_file(tmp_path / "whole" / "checkpoints" / "000002.safetensors")
    moved = {key for key, value in snapshot.items() if not value.equal(before[key].half())}
    assert moved and not any("language_model" in key or "lm_head" in key for key in moved)
    assert json.loads((tmp_path / "whole" / "recipe.json").read_text())["naming_steps"] == 2


@pytest.mark.slow
def test_retraining_learns_to_name(tmp_path, monkeypatch):
    monkeypatch.setattr(exam, "examine", lambda hf, tokenizer: {})
    recipe = train.Recipe(train.base_hash(), steps=160, naming_steps=150)
    losses = train.train("tales-vision", tmp_path, recipe=recipe, progress=False)
    assert sum(losses[140:150]) < 0.7 * sum(losses[:10])
