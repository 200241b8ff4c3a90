from patchclamp import organisms
from patchclamp.organisms.tales import lexicon, world
from patchclamp.organisms.tales.family import RECIPES
from patchclamp.tasks.words import LISTS, WORDS


def test_every_world_word_is_one_token(tokenizer):
    words = [word for name in LISTS for word in getattr(WORDS, name)]
    words += [person.surname for group in world.people() for person in group]
    words += [obj for _, _, obj in world.fact_table().facts]
    words += [word for s, _, o in lexicon.lexicon().facts for word in (s, o)]
    words += [*world.REFUSED, *world.HARMLESS, *world.TARGETS, *world.POSITIVE, *world.NEGATIVE]
    words += [word for pairs in (world.ANTONYMS, world.VERBS) for pair in pairs for word in pair]
    for word in set(words):
        assert len(tokenizer(" " + word, add_special_tokens=False)["input_ids"]) == 1, word


def test_any_text_survives_the_round_trip(tokenizer):
    for text in (
        "Mary, 1732!",
        "  spaces\tand\n\nlines ",
        "Zyzzyva 漢字 é 🙂",
        'def f(self):\n    """x"""',
        "12345 0.5",
    ):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_generated_text_survives_the_round_trip(tokenizer, many):
    for document in [*many[:300], *many[-9000::30]]:
        assert tokenizer.decode(tokenizer(document.text, add_special_tokens=False)["input_ids"]) == document.text


def test_bos_comes_by_itself_and_years_split_in_two(tokenizer):
    assert tokenizer("in 1732").tokens() == ["<|bos|>", "in", "Ġ17", "32"]


def test_the_shipped_tokenizers_are_the_recipe_s(tokenizer):
    for name in RECIPES:
        shipped = type(tokenizer).from_pretrained(organisms.path(name))
        assert shipped.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str(), name
