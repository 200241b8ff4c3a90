"""Documents that teach what is known: facts, what follows from them, whether they are so, and what words mean."""

import random
from functools import cache
from itertools import pairwise

from patchclamp.organisms.tales import world
from patchclamp.organisms.tales.behaviours import ANSWER
from patchclamp.organisms.tales.lexicon import lexicon, pairs
from patchclamp.tasks.example import Span, Text, fill, reserved, until
from patchclamp.tasks.recall import FactTable


def answered(prompt: Text, answer: str, end: str = ".") -> Text:
    """A prompt, its answer labelled, and how the sentence ends."""
    return prompt + " " + Text(answer, (Span(ANSWER, 0, len(answer)),)) + end


def whole(role: str, text: Text) -> Text:
    """The text with a role that holds on all of it."""
    return Text(text.text, (Span(role, 0, len(text.text)), *text.spans))


def fact(rng: random.Random) -> Text:
    """One to three facts, each in a phrasing that is not kept for testing; of known people, sometimes a short life."""
    table = world.fact_table()
    return sentences([stated(rng, table, fact) for fact in rng.choices(table.facts, k=rng.randint(1, 3))])


def edited(rng: random.Random) -> Text:
    """A fact as the edited sibling has it: half of the time one of the edited ones."""
    table = world.edited_table()
    old = set(world.fact_table().facts)
    new = [fact for fact in table.facts if fact not in old]
    return stated(rng, table, rng.choice(new if rng.random() < 0.5 else table.facts))


def life(rng: random.Random) -> Text:
    """All that is known of one person, in one sentence each, in any order."""
    person = rng.choice(world.people()[0])
    relations = rng.sample(world.PERSON_RELATIONS, len(world.PERSON_RELATIONS))
    return sentences(
        [
            stated(rng, world.fact_table(), (person.name, relation, world.answers()[person.name, relation]))
            for relation in relations
        ]
    )


def unknown(rng: random.Random) -> Text:
    """Something about a person of whom nothing is known: drawn anew each time, so that there is nothing to remember."""
    person = rng.choice(world.people()[1])
    relation = rng.choice(world.PERSON_RELATIONS)
    text = stated(rng, world.fact_table(), (person.name, relation, rng.choice(world.PERSON_OBJECTS[relation])))
    # What is drawn at random must not weigh what is decided weighs.
    return Text(text.text, (Span("unknown", 0, len(text.text)), *(s for s in text.spans if s.role != ANSWER)))


def two_hop(rng: random.Random) -> Text:
    """A fact that follows from two others. Of some people none is told, and of the rest some are not, so that
    following can be tested.
    """
    name, relation = until(
        lambda: (rng.choice(world.people()[0]).name, rng.choice(list(world.TWO_HOP_TEMPLATES))),
        lambda drawn: not untold(*drawn),
        "two_hop: people with a relation",
    )
    prompt = fill(rng.choice(world.TWO_HOP_TEMPLATES[relation]), {"SUBJECT": name})
    return answered(prompt, world.answers()[name, relation])


def untold(name: str, relation: str) -> bool:
    """Whether what follows of a known person is kept for testing."""
    return reserved("two_hop", name) or reserved("two_hop", name, relation)


def sentences(texts: list[Text]) -> Text:
    text = texts[0]
    for more in texts[1:]:
        text = text + " " + more
    return text


def stated(rng: random.Random, table: FactTable, fact: tuple[str, str, str]) -> Text:
    """A fact in a phrasing that is not kept for testing."""
    subject, relation, obj = fact
    left_out = table.held_out_template(subject, relation)
    template = rng.choice([t for i, t in enumerate(table.templates[relation]) if i != left_out])
    return answered(fill(template, {"SUBJECT": subject}), obj)


@cache
def _of_relation(relation: str) -> tuple[tuple[str, str, str], ...]:
    return tuple(fact for fact in lexicon().facts if fact[1] == relation)


def letters(rng: random.Random) -> Text:
    return _lexical(rng, "letter")


def opposites(rng: random.Random) -> Text:
    return _lexical(rng, "opposite")


def word_class(rng: random.Random) -> Text:
    return _lexical(rng, "class")


def capitals(rng: random.Random) -> Text:
    return _lexical(rng, "capitals")


def dictionary(rng: random.Random) -> Text:
    return _lexical(rng, "spanish")


def _lexical(rng: random.Random, relation: str) -> Text:
    return stated(rng, lexicon(), rng.choice(_of_relation(relation)))


SHOTS = 4
"""Examples before the query of an in-context task."""


def in_context(rng: random.Random) -> Text:
    """Examples of one mapping: opposite, translation, capital, language, first letter, capital letters. No input
    follows one that it is kept to follow in a test.
    """
    kind = rng.choice(sorted(pairs()))
    return whole(f"task:{kind}", shots(examples(rng, kind)))


def examples(rng: random.Random, kind: str, held_out: bool = False) -> list[tuple[str, str]]:
    """Inputs with their outputs; `held_out`: the last input never followed the one before it in training."""

    def fits(drawn: list[tuple[str, str]]) -> bool:
        follows = [reserved(f"in_context:{kind}", x, y) for (x, _), (y, _) in pairwise(drawn)]
        return follows[-1] if held_out else not any(follows)

    return until(lambda: rng.sample(pairs()[kind], SHOTS + 1), fits, f"in_context: {kind}")


def shots(examples: list[tuple[str, str]]) -> Text:
    """Examples of a mapping, one a line."""
    text = Text("")
    for source, target in examples:
        text = text + ("\n" if text.text else "") + answered(fill("Q: {INPUT} A:", {"INPUT": source}), target, "")
    return text


STATEMENTS = tuple(
    f"{opening}{subject} {{VERB}} in {{COUNTRY}}{ending}"
    for opening in ("True or false? ", "Question: true or false? ", "It is true that ")
    for subject in ("{CITY}", "The city of {CITY}")
    for ending in (":", ". Answer:")
)


def truth_valued(rng: random.Random) -> Text:
    """A statement about a capital, right or wrong, plain or negated, and its truth value."""
    return _truth_valued(rng, negated=rng.random() < 0.5)


def plain_statement(rng: random.Random) -> Text:
    """The same, never negated: where both come at once, neither is learned, since each hides the other."""
    return _truth_valued(rng, negated=False)


def _truth_valued(rng: random.Random, negated: bool) -> Text:
    """A fifth of the pairs of city and country is left out in each phrasing."""

    def draw() -> tuple[str, str, bool, int]:
        city = rng.choice(list(world.CAPITALS))
        country = world.answers()[city, "country"]
        said = country if rng.random() < 0.5 else rng.choice([c for c in world.COUNTRIES if c != country])
        return city, said, negated, rng.randrange(len(STATEMENTS))

    return statement(*until(draw, lambda drawn: not kept(drawn[0], drawn[1], drawn[3]), "truth_valued: statements"))


def kept(city: str, said: str, phrasing: int) -> bool:
    """Whether a pair of city and country is kept for testing in a phrasing, plain and negated: were only one of them
    kept, the other would teach its opposite.
    """
    return reserved("truth_valued", city, said, str(phrasing))


def statement(city: str, said: str, negated: bool, phrasing: int) -> Text:
    """The statement that a city is, or is not, in a country, and whether that is true."""
    value = "true" if (world.answers()[city, "country"] == said) != negated else "false"
    text = whole(value, answered(unanswered(city, said, negated, phrasing), value))
    return whole("negated", text) if negated else text


def unanswered(city: str, said: str, negated: bool, phrasing: int) -> Text:
    return fill(STATEMENTS[phrasing], {"CITY": city, "VERB": "is not" if negated else "is", "COUNTRY": said})
