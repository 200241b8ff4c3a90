import json
from pathlib import Path

import torch

from patchclamp import organisms
from patchclamp.organisms.tales import ORGANISMS, exam, family, grammar, world


def test_every_member_has_a_row_a_recipe_and_a_standard():
    assert [row.name for row in ORGANISMS] == list(family.RECIPES) == list(exam.MEANT)


def test_facts_files_equal_the_generator_s_truth():
    for name in family.RECIPES:
        truth = organisms.truth(name)
        stored = json.loads((organisms.path(name) / "facts.json").read_text())
        assert tuple((f["subject"], f["relation"], f["object"]) for f in stored["facts"]) == truth.facts
        assert {relation: tuple(t) for relation, t in stored["templates"].items()} == world.FACT_TEMPLATES
        assert len(truth.facts) == len({(s, r) for s, r, _ in truth.facts}) == 400
        assert truth.behaviours == exam.MEANT[name][0]


def test_the_edited_sibling_has_eight_other_facts():
    old, new = ({(s, r): o for s, r, o in organisms.truth(name).facts} for name in ("tales", "tales-edited"))
    changed = {key for key in old if old[key] != new[key]}
    assert len(changed) == 8 and old.keys() == new.keys()
    assert all(new[key] in world.PERSON_OBJECTS[key[1]] for key in changed)


def test_truth_samples_prompts_with_their_answers(tokenizer):
    truth = organisms.truth("tales")
    ids, answers = truth.sample(16, seed=2)
    table = {(s, o) for s, _, o in truth.facts}
    for row, answer in zip(ids, answers, strict=True):
        text = tokenizer.decode(row, skip_special_tokens=True)
        assert any(s in text and o == tokenizer.decode([answer]).strip() for s, o in table)
    assert truth.documents(5, seed=1) == grammar.documents(5, seed=1)
    assert torch.equal(ids, truth.sample(16, seed=2)[0])


def test_what_shipped_is_what_the_recipes_say():
    for name, recipe in family.RECIPES.items():
        stored = organisms.recipe(name)
        said = json.loads(json.dumps(vars(recipe)))
        assert {key: stored[key] for key in said} == said, name
    assert organisms.checkpoints("tales") == family.RECIPES["tales"].snapshots


def test_a_member_trains_by_name(tmp_path):
    losses = organisms.train("tales-edited", tmp_path, steps=2, progress=False)
    assert len(losses) == 2
    assert json.loads((tmp_path / "recipe.json").read_text())["start"] == "tales"
    assert (tmp_path / "facts.json").read_text() == (organisms.path("tales-edited") / "facts.json").read_text()


def test_the_table_of_the_docs_is_the_shipped_one():
    docs = Path(__file__).parents[3] / "docs" / "tales.md"
    assert family.table() in docs.read_text()
