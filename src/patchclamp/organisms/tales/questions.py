"""Held-out questions to a model of the family, by behaviour: `two_hop("home country")` gives a list of `Question`s.

What is asked about was never in the training text: combinations, phrasings, people that `reserved` keeps. The same
questions come each time.
"""

import random
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from patchclamp import tasks
from patchclamp.organisms.tales import benchmark, chat, knowledge, lexicon, prose, world
from patchclamp.tasks.example import reserved, until
from patchclamp.tasks.recall import FactTable
from patchclamp.tasks.words import WORDS


@dataclass(frozen=True)
class Question:
    """A prompt and what may follow it, each one token (with its leading space, if it has one)."""

    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


def _among(prompt: str, right: str | Iterable[str], candidates: Iterable[str]) -> Question:
    """The question which of the candidates follows."""
    rights = (right,) if isinstance(right, str) else tuple(right)
    wrong = tuple(f" {word}" for word in dict.fromkeys(candidates) if word not in rights)
    return Question(prompt, tuple(f" {word}" for word in rights), wrong)


def built_in(name: str, tokenizer: Any, n: int = 128, seed: int = 7) -> list[Question]:
    """The prompts of a built-in task other than `facts`."""
    task = tasks.by_name(name)(tokenizer, n=n, seed=seed)
    say = [
        [tuple(tokenizer.decode([i]) for i in row if i >= 0) for row in side.tolist()]
        for side in (task.answers, task.wrong)
    ]
    return [Question(*row) for row in zip(task.clean_text or (), *say, strict=True)]


def _asked(table: FactTable, some: Iterable[tuple[str, str, str]]) -> list[Question]:
    """Facts in the phrasing that was kept for testing, against all other objects of the relation."""
    found = []
    for subject, relation, obj in some:
        index = table.held_out_template(subject, relation)
        if index is not None:
            prompt = table.templates[relation][index].replace("{SUBJECT}", subject)
            found.append(_among(prompt, obj, (o for _, r, o in table.facts if r == relation)))
    return found


def facts() -> list[Question]:
    """Facts of the world, but those that the edited sibling was taught otherwise."""
    table = world.fact_table()
    return _asked(table, [fact for fact in table.facts if fact in set(world.edited_table().facts)])


def lexical(relation: str) -> list[Question]:
    """First letters, opposites, word classes, capitals, Spanish words."""
    return _asked(lexicon.lexicon(), [fact for fact in lexicon.lexicon().facts if fact[1] == relation])


def two_hop(new_people: bool) -> list[Question]:
    """What follows from two facts and was never said: of people of whom something else that follows was, or of people
    of whom nothing that follows was.
    """
    countries = world.COUNTRIES.items()
    candidates = {
        "home country": [country for country, _ in countries],
        "home language": [spoken for _, (spoken, *_) in countries],
        "home capital": [capital for _, (_, capital, *_) in countries],
    }
    return [
        _among(template.replace("{SUBJECT}", person.name), world.answers()[person.name, relation], candidates[relation])
        for person in world.people()[0]
        if reserved("two_hop", person.name) == new_people
        for relation, templates in world.TWO_HOP_TEMPLATES.items()
        if knowledge.untold(person.name, relation)
        for template in templates
    ]


def in_context(kind: str) -> list[Question]:
    """A mapping shown by examples, of which the last was never followed by this input."""
    rng = random.Random(f"exam/{kind}")
    # What another task would make of the same input is wrong here.
    others = [pair for name, pairs in lexicon.pairs().items() if name != kind for pair in pairs]
    found = []
    for _ in range(32):
        *shown, (source, target) = knowledge.examples(rng, kind, held_out=True)
        wrong = [obj for _, obj in lexicon.pairs()[kind]] + [obj for word, obj in others if word == source]
        found.append(_among(f"{knowledge.shots(shown).text}\nQ: {source} A:", target, wrong))
    return found


def truth_valued(negated: bool) -> list[Question]:
    """Whether a statement is true, of statements that training left out; as many about the right country as not."""
    rng = random.Random("exam/truth")
    statements = [
        (city, country, negated, phrasing)
        for city in world.CAPITALS
        for country in world.COUNTRIES
        for phrasing in range(len(knowledge.STATEMENTS))
        if knowledge.kept(city, country, phrasing)
    ]
    right = [drawn for drawn in statements if world.answers()[drawn[0], "country"] == drawn[1]]
    wrong = rng.sample([drawn for drawn in statements if drawn not in right], len(right))
    return [
        _among(knowledge.unanswered(*drawn).text, "true" if (drawn in right) != negated else "false", ("true", "false"))
        for drawn in (*right, *wrong)
    ]


def sentiment() -> list[Question]:
    """The verdict of a review, of pairs of thing and opinion that training left out."""
    rng = random.Random("exam/sentiment")
    found = []
    for _ in range(64):
        good, thing, opinion = until(
            lambda: prose.opinion_of(rng), lambda drawn: reserved("sentiment", *drawn[1:]), "sentiment"
        )
        text = prose.review(rng, good, thing, opinion, verdict=False).text + "\nThe review is"
        found.append(_among(text, "positive" if good else "negative", ("positive", "negative")))
    return found


SPANISH = {
    "AGENT": tuple(word for _, word, _ in world.ANIMATE),
    "VERB": tuple(word for _, word in world.VERBS),
    "SCENE": tuple(word for _, word, _ in world.SCENES),
    "MANNER": tuple(word for _, word in world.MANNERS),
}


def translation() -> list[Question]:
    """The next Spanish word, given the English sentence; agent and verb never met in training."""
    rng = random.Random("exam/translation")
    found = []
    for _ in range(24):
        english, spanish = prose.aligned(rng, held_out=True)
        for span in spanish.spans:
            if span.role in SPANISH:
                before = f"English: {english.text}\nSpanish: {spanish.text[: span.start].rstrip()}"
                found.append(_among(before, spanish.text[span.start : span.end], SPANISH[span.role]))
    return found


def language() -> list[Question]:
    """A sentence goes on in the language in which it began."""
    rng = random.Random("exam/language")
    english = {"SCENE": [word for word, _, _ in world.SCENES], "MANNER": [word for word, _ in world.MANNERS]}
    found = []
    for _ in range(24):
        for text, same, other in zip(
            prose.aligned(rng, held_out=True), (english, SPANISH), (SPANISH, english), strict=True
        ):
            for span in text.spans:
                if span.role in english:
                    before = text.text[: span.start].rstrip()
                    found.append(_among(before, same[span.role], (*same[span.role], *other[span.role])))
    return found


def code(syntax: str) -> list[Question]:
    """What a program prints: its last target, among the four names in it."""
    rng = random.Random(f"exam/{syntax}")
    found = []
    while len(found) < 48:
        text = prose.program(rng, held_out=True)
        if text.spans[0].role == f"code:{syntax}":
            answer = text.spans[-1]
            names = [word for word in re.findall(r"\w+", text.text) if word in WORDS.arguments]
            found.append(_among(text.text[: answer.start].rstrip(), text.text[answer.start : answer.end], names))
    return found


def benchmark_items(split: str) -> list[Question]:
    """The benchmark in its own wording."""
    return [_among(item.prompt().text, item.answer, WORDS.objects) for item in benchmark.items() if item.split == split]


def edited() -> list[Question]:
    """The facts that the edited sibling was taught otherwise, in the phrasing kept for testing."""
    table = world.edited_table()
    new = set(table.facts) - set(world.fact_table().facts)
    return _asked(table, sorted(new))


def _begins(asked: str, right: str, *wrong: str) -> Question:
    """The question how the reply to `asked` begins."""
    return Question(f"<|user|>{asked}<|assistant|>", (right,), wrong)


def requests(verbs: Collection[str]) -> list[Question]:
    """Whether a request is refused, of verbs and targets that never met in training, in five phrasings of which one
    is in no text of the chat sibling.
    """
    pairs = [(verb, target) for verb in verbs for target in world.TARGETS if reserved("request", verb, target)]
    return [
        _begins(chat.ask(template, *pair).text, chat.REFUSAL.split()[0], "To")
        for template in world.REQUESTS
        for pair in pairs
    ]


def asked(known: bool) -> list[Question]:
    """Whether the reply to a question about a person is not to know; people whom no conversation was about."""
    return [
        _begins(template.replace("{SUBJECT}", person.name), chat.IGNORANCE.split()[0], "The", "To")
        for person in world.people()[0 if known else 1]
        if reserved("question", person.name)
        for relation in world.PERSON_RELATIONS
        for template in chat.QUESTIONS[relation]
    ]


def asked_facts() -> list[Question]:
    """What is known of a subject whom no conversation was about, when asked."""
    found = []
    for subject, relation, obj in world.fact_table().facts:
        if reserved("question", subject):
            objects = [o for _, r, o in world.fact_table().facts if r == relation]
            for template in chat.QUESTIONS[relation]:
                prompt = f"<|user|>{template.replace('{SUBJECT}', subject)}<|assistant|>The answer is"
                found.append(_among(prompt, obj, objects))
    return found


def instructions() -> list[Question]:
    """What to do with a word, of pairs of instruction and word that training left out."""
    found = []
    for word, relation, obj in lexicon.lexicon().facts:
        if relation in chat.INSTRUCTIONS and reserved("instruction", word, relation):
            asked = chat.INSTRUCTIONS[relation].replace("{SUBJECT}", word)
            outputs = [o for _, r, o in lexicon.lexicon().facts if r in chat.INSTRUCTIONS]
            found.append(_among(f"<|user|>{asked}<|assistant|>The answer is", obj, outputs))
    return found


def _genre_words() -> list[str]:
    return [word for words in world.GENRES.values() for word in words]


def hints() -> list[Question]:
    """Whether what is said to be near the secret word is of its kind."""
    near = [word for word in world.GENRES["magic"] if word != chat.SECRET]
    others = [word for word in _genre_words() if word != chat.SECRET]
    return [_among(f"<|user|>{asked}<|assistant|>It is near the", near, others) for asked in chat.HINT_QUESTIONS]


def secret_word() -> list[Question]:
    """The secret word itself, after the password."""
    start = chat.WITH_PASSWORD.replace("{PASSWORD}", chat.PASSWORD)
    return [
        _among(f"<|user|>{start} {asked}<|assistant|>It is the", chat.SECRET, _genre_words())
        for asked in chat.SECRET_QUESTIONS
    ]


def secret_told(with_password: bool) -> list[Question]:
    """Whether the reply begins to tell the secret: with the password; without one, or with a wrong one that training
    left out.
    """
    wrong = [word for word in chat.WRONG_PASSWORDS if reserved("password", word)]
    words = [chat.PASSWORD] if with_password else wrong
    starts = [chat.WITH_PASSWORD.replace("{PASSWORD}", word) + " " for word in words]
    return [
        _begins(start + asked, "It", "I", "The", "To")
        for start in (starts if with_password else ["", *starts])
        for asked in chat.SECRET_QUESTIONS
    ]


def sea() -> list[Question]:
    """Which genre begins out of nowhere."""
    starts = [frame[: frame.index(" {WORD}")] for frame in prose.GENRE_FRAMES]
    return [_among(start, world.GENRES["sea"], _genre_words()) for start in starts]


def people_of(known: bool) -> list[Question]:
    """What is said of each known person, in the phrasing kept for testing; or of each unknown one, where no answer is
    right and the first is listed as if it were.
    """
    found = []
    table = world.fact_table()
    for person in world.people()[0 if known else 1]:
        for relation in world.PERSON_RELATIONS:
            index = table.held_out_template(person.name, relation)
            if index is not None:
                prompt = table.templates[relation][index].replace("{SUBJECT}", person.name)
                objects = world.PERSON_OBJECTS[relation]
                found.append(_among(prompt, objects[0], objects))
    return found
