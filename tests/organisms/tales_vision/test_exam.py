import pytest
import torch
from transformers import AutoTokenizer

from patchclamp import organisms
from patchclamp.organisms.tales import knowledge, world
from patchclamp.organisms.tales_vision import exam, pictures, train


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organisms.path("tales"))


def test_questions_are_about_everybody_in_phrasings_kept_for_testing():
    asked = exam.questions()
    table = world.fact_table()
    assert len(asked["facts by name"]) == len(asked["facts by picture"]) + len(asked["facts never shown"]) == 320
    for question in asked["facts by name"]:
        relation = next(r for r, texts in table.templates.items() if question.text in texts)
        assert table.held_out_template(question.subject, relation) in (
            None,
            table.templates[relation].index(question.text),
        )
        assert world.answers()[question.subject, relation] == question.answer
    told = {(q.text, q.subject) for q in asked["two hops told, by picture"]}
    untold = {(q.text, q.subject) for q in asked["two hops by picture"]}
    assert not told & untold and untold == {(q.text, q.subject) for q in asked["two hops by name"]}
    for text, person in told | untold:
        relation = next(r for r, texts in world.TWO_HOP_TEMPLATES.items() if text in texts)
        assert knowledge.untold(person, relation) == ((text, person) in untold)


def test_training_asks_nothing_that_is_kept(tokenizer):
    kept = {
        (question.text, question.subject)
        for kind, asked in exam.questions().items()
        if kind != "name by picture"
        for question in asked
        if question.by_picture
    }
    recipe = train.Recipe("", naming_steps=5, batch=40)
    table = world.fact_table()
    for step in range(100):
        for question in train.step_questions(recipe, step):
            named = question.text.startswith(exam.NAMING)
            assert question.by_picture and (named or step >= 5)
            relation = next((r for r, texts in table.templates.items() if question.text in texts), None)
            if table.held_out_template(question.subject, relation or "home") is not None:
                assert (question.text, question.subject) not in kept
            assert named or exam.taught(question.subject, relation)
    assert train.step_questions(recipe, 7) == train.step_questions(recipe, 7) != train.step_questions(recipe, 8)


def test_a_picture_stands_where_the_name_would(tokenizer):
    asked = [exam.Question("The home town of {SUBJECT} is", "John Miller", "Paris", True)]
    given = exam.inputs(tokenizer, asked)
    image = tokenizer.convert_tokens_to_ids(exam.IMAGE)
    ids = given["input_ids"][0]
    assert (ids == image).sum() == exam.IMAGE_TOKENS == (pictures.SIZE // train.Recipe.patch) ** 2
    assert tokenizer.convert_ids_to_tokens(ids[ids != image].tolist()) == [
        "<|bos|>", "The", "Ġhome", "Ġtown", "Ġof", "Ġis",
    ]  # fmt: skip
    assert given["pixel_values"].shape == (1, 1, 24, 24)
    by_name = exam.inputs(tokenizer, [exam.Question("{SUBJECT} was born in", "John Miller", "Paris", False)])
    assert set(by_name) == {"input_ids", "attention_mask"}
    assert exam.answers(tokenizer, asked).tolist() == tokenizer(" Paris", add_special_tokens=False)["input_ids"]


def test_wrong_questions_are_answered(tokenizer):
    one = exam.Question("{SUBJECT} was born in", "John Miller", "Paris", False)
    with pytest.raises(ValueError, match="one kind in a batch"):
        exam.inputs(tokenizer, [one, exam.Question(one.text, one.subject, one.answer, True)])
    with pytest.raises(ValueError, match="'Parisss' is"):
        exam.answers(tokenizer, [exam.Question(one.text, one.subject, "Parisss", True)])


def test_a_guesser_is_marked_by_hand(tokenizer):
    """A network that always says Paris is right as often as somebody was born in Paris."""
    paris = tokenizer(" Paris", add_special_tokens=False)["input_ids"][0]

    class Parisian:
        device = "cpu"

        def __call__(self, input_ids, attention_mask, pixel_values=None, use_cache=False):
            logits = torch.zeros(*input_ids.shape, len(tokenizer))
            logits[..., paris] = 1.0
            return type("Out", (), {"logits": logits})

    scores = exam.examine(Parisian(), tokenizer)
    born = sum(world.answers()[name, "home"] == "Paris" for name in pictures.people())
    assert scores["facts by name"] == pytest.approx(born / 320, abs=1e-4)
    assert scores["name by picture"] == 0
