from patchclamp.organisms.tales import grammar
from patchclamp.organisms.tales.labels import token_labels, token_roles


def labelled(text, tokenizer, kind="story", spans=()):
    document = grammar.Document(text, kind, spans)
    tokens = [tokenizer.decode([i]).strip() for i in tokenizer(text)["input_ids"]]
    return dict(zip(tokens, token_labels(document, tokenizer), strict=True))


def test_token_roles_label_the_answer(tokenizer):
    document = grammar.documents(1, seed=5, kind="ioi")[0]
    roles = token_roles(document, tokenizer)
    ids = tokenizer(document.text)["input_ids"]
    assert len(roles) == len(ids)
    answer = [tokenizer.decode([i]) for i, some in zip(ids, roles, strict=True) if "answer" in some]
    io = [tokenizer.decode([i]) for i, some in zip(ids, roles, strict=True) if "IO" in some]
    assert answer == io or answer == [" " + io[0]]
    assert roles[0] == ()


def test_every_attribute_of_a_sentence(tokenizer):
    labels = labelled("Mary found a small lamp at the station. She sings 12.", tokenizer)
    parts = {word: some.part_of_speech for word, some in labels.items()}
    assert parts == {
        "<|bos|>": "",
        "Mary": "name",
        "found": "verb",
        "a": "determiner",
        "small": "adjective",
        "lamp": "noun",
        "at": "preposition",
        "the": "determiner",
        "station": "noun",
        ".": "punctuation",
        "She": "pronoun",
        "sings": "verb",
        "12": "number",
    }
    assert labels["Mary"].first_letter == "m" and labels["lamp"].first_letter == "l" and labels["."].first_letter == ""
    assert labels["lamp"].language == "english" and labels["."].language == ""
    assert labels["lamp"].names() == ("pos:noun", "letter:l", "language:english", "kind:story")


def test_a_sentence_of_two_languages(tokenizer):
    document = grammar.documents(1, seed=0, kind="parallel")[0]
    labels = token_labels(document, tokenizer)
    tokens = [tokenizer.decode([i]).strip() for i in tokenizer(document.text)["input_ids"]]
    languages = dict(zip(tokens, (some.language for some in labels), strict=True))
    assert languages["The"] == "english" and languages["en"] == "spanish"
    aligned = {role: [] for role in ("AGENT", "VERB", "SCENE", "MANNER")}
    for some in labels:
        for role in set(some.roles) & set(aligned):
            aligned[role].append((some.language, some.part_of_speech))
    for role, pair in aligned.items():
        assert [language for language, _ in pair] == ["english", "spanish"], role
        assert pair[0][1] == pair[1][1], role


def test_a_role_says_the_class_of_a_word_that_has_two(tokenizer):
    """What is reviewed is a play, who plays does so."""
    document = next(d for d in grammar.documents(400, seed=0, kind="sentiment") if "The play was" in d.text)
    tokens = [tokenizer.decode([i]).strip() for i in tokenizer(document.text)["input_ids"]]
    assert token_labels(document, tokenizer)[tokens.index("play")].part_of_speech == "noun"
    assert labelled("light plays", tokenizer)["plays"].part_of_speech == "verb"


def test_every_token_of_the_text_has_a_part_of_speech(tokenizer, of):
    for kind in grammar.KINDS:
        for document in of(kind)[:60]:
            ids = tokenizer(document.text)["input_ids"]
            for token, some in list(zip(ids, token_labels(document, tokenizer), strict=True))[1:]:
                text = tokenizer.decode([token])
                assert some.part_of_speech or not text.strip(), (text, document.text)
                assert some.kind == kind
