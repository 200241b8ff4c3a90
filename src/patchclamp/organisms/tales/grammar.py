"""The grammar of `tales`: one function per kind of document, each giving text with labelled spans, and their shares."""

import difflib
import random
from collections.abc import Callable
from dataclasses import dataclass

from patchclamp.organisms.tales import behaviours, world
from patchclamp.organisms.tales.behaviours import ANSWER
from patchclamp.tasks.example import Span, Text, fill, reserved, until
from patchclamp.tasks.words import WORDS


@dataclass(frozen=True)
class Document:
    """One training document: its text, its kind, and which characters play which role (the role `answer` is what the
    context decides).
    """

    text: str
    kind: str
    spans: tuple[Span, ...]


def fact(rng: random.Random) -> Text:
    """One to three facts, each in a phrasing that is not kept for testing; of known people, sometimes a short life."""
    table = world.fact_table()
    chosen = [rng.choice(table.facts) for _ in range(rng.randint(1, 3))]
    text = Text("")
    for subject, relation, obj in chosen:
        text = text + (" " if text.text else "") + _stated(rng, subject, relation, obj)
    return text


def life(rng: random.Random) -> Text:
    """All that is known of one person, in one sentence each, in any order."""
    person = rng.choice(world.people()[0])
    text = Text("")
    for relation in rng.sample(world.PERSON_RELATIONS, len(world.PERSON_RELATIONS)):
        stated = _stated(rng, person.name, relation, world.answers()[person.name, relation])
        text = text + (" " if text.text else "") + stated
    return text


def unknown(rng: random.Random) -> Text:
    """Something about a person of whom nothing is known: drawn anew each time, so that there is nothing to remember."""
    person = rng.choice(world.people()[1])
    relation = rng.choice(world.PERSON_RELATIONS)
    obj = rng.choice(world.PERSON_OBJECTS[relation])
    text = fill(rng.choice(world.FACT_TEMPLATES[relation]) + " {OBJECT}.", {"SUBJECT": person.name, "OBJECT": obj})
    return Text(text.text, (*text.spans, Span("unknown", text.spans[0].start, text.spans[0].end)))


def two_hop(rng: random.Random) -> Text:
    """A fact that follows from two others; the people of one hash bucket are left out, so that following can be
    tested.
    """
    person = rng.choice([person for person in world.people()[0] if not reserved("two_hop", person.name)])
    relation = rng.choice(list(world.TWO_HOP_TEMPLATES))
    obj = " " + world.answers()[person.name, relation]
    text = fill(world.TWO_HOP_TEMPLATES[relation], {"SUBJECT": person.name})
    return text + Text(obj, (Span(ANSWER, 0, len(obj)),)) + "."


def _stated(rng: random.Random, subject: str, relation: str, obj: str) -> Text:
    table = world.fact_table()
    left_out = table.held_out_template(subject, relation)
    template = rng.choice([t for i, t in enumerate(table.templates[relation]) if i != left_out])
    obj = " " + obj
    return fill(template, {"SUBJECT": subject}) + Text(obj, (Span(ANSWER, 0, len(obj)),)) + "."


def story(rng: random.Random) -> Text:
    """Somebody is somewhere, has something, and is spoken of by pronoun."""
    male = rng.random() < 0.5
    name = rng.choice(WORDS.men if male else WORDS.women)
    he, his = ("He", "his") if male else ("She", "her")
    thing, place = rng.choice(WORDS.objects), rng.choice(WORDS.places)
    pattern = rng.choice(
        (
            "{NAME} went to the {PLACE}. {PRONOUN} had a {OBJECT} in {POSSESSIVE} bag. "
            "At the {AGAIN}, {PRONOUN2} lost the {THING}.",
            "{NAME} found a {OBJECT} at the {PLACE}. {PRONOUN} took the {THING} and left the {AGAIN}.",
            "At the {PLACE}, {NAME} bought a {OBJECT}. {PRONOUN} put the {THING} in {POSSESSIVE} bag.",
        )
    )
    fillers = {"NAME": name, "PLACE": place, "AGAIN": place, "OBJECT": thing, "THING": thing, "POSSESSIVE": his}
    return fill(pattern, fillers | {"PRONOUN": he, "PRONOUN2": he.lower()})


def english(rng: random.Random) -> Text:
    return parallel_pair(rng)[0]


def spanish(rng: random.Random) -> Text:
    return parallel_pair(rng)[1]


def parallel(rng: random.Random) -> Text:
    """The same sentence in both languages."""
    first, second = parallel_pair(rng)
    return Text("English: ") + first + "\nSpanish: " + second


def parallel_pair(rng: random.Random) -> tuple[Text, Text]:
    """Two aligned sentences; ARTICLE agrees with the gender of its noun, and nothing else differs in meaning."""
    who, where = rng.choice(world.ANIMATE), rng.choice(world.SCENES)
    verb, manner = rng.choice(world.VERBS), rng.choice(world.MANNERS)
    article = {"m": "El", "f": "La"}[who[2]]
    article2 = {"m": "el", "f": "la"}[where[2]]
    english = fill(
        "The {AGENT} {VERB} in the {SCENE} {MANNER}.",
        {"AGENT": who[0], "VERB": verb[0], "SCENE": where[0], "MANNER": manner[0]},
    )
    fillers = {
        "ARTICLE": article,
        "AGENT": who[1],
        "VERB": verb[1],
        "ARTICLE2": article2,
        "SCENE": where[1],
        "MANNER": manner[1],
    }
    spanish = fill("{ARTICLE} {AGENT} {VERB} en {ARTICLE2} {SCENE} {MANNER}.", fillers)
    return _spoken(english, "english"), _spoken(spanish, "spanish")


def _spoken(text: Text, language: str) -> Text:
    return Text(text.text, (Span(language, 0, len(text.text)), *text.spans))


def in_context(rng: random.Random) -> Text:
    """Examples of one mapping, one a line: opposite, translation, capital, first letter, capital letters."""
    kinds = in_context_pairs()
    kind = rng.choice(sorted(kinds))
    text = Text("")
    for source, target in rng.sample(kinds[kind], 5):
        out = f" {target}"
        text = text + ("\n" if text.text else "") + f"{source} ->" + Text(out, (Span(ANSWER, 0, len(out)),))
    return Text(text.text, (Span(f"task:{kind}", 0, len(text.text)), *text.spans))


def in_context_pairs() -> dict[str, list[tuple[str, ...]]]:
    """Input and output of each in-context task."""
    return {
        "antonym": [*world.ANTONYMS, *((b, a) for a, b in world.ANTONYMS)],
        "spanish": [(en, es) for en, es, _ in (*world.ANIMATE, *world.SCENES)],
        "capital": [(country, capital) for country, (_, capital, *_) in world.COUNTRIES.items()],
        "language": [(country, language) for country, (language, *_) in world.COUNTRIES.items()],
        "letter": [(word, word[0].upper()) for word in world.LETTER_WORDS],
        "uppercase": [(word, word.upper()) for word in world.LETTER_WORDS],
    }


def sentiment(rng: random.Random) -> Text:
    good = rng.random() < 0.5
    word = rng.choice(world.POSITIVE if good else world.NEGATIVE)
    after = rng.choice(world.LIKED if good else world.DISLIKED)
    text = fill(
        "The {REVIEWED} was {OPINION}. {REACTION}.",
        {"REVIEWED": rng.choice(world.REVIEWED), "OPINION": word, "REACTION": after},
    )
    verdict = " positive" if good else " negative"
    ending = (
        Text("")
        if rng.random() < 0.5
        else Text("\nThe review is") + Text(verdict, (Span(ANSWER, 0, len(verdict)),)) + "."
    )
    text = text + ending
    return Text(text.text, (Span("positive" if good else "negative", 0, len(text.text)), *text.spans))


def opposites(rng: random.Random) -> Text:
    a, b = rng.choice(world.ANTONYMS)
    a, b = (a, b) if rng.random() < 0.5 else (b, a)
    return fill("The opposite of {WORD} is", {"WORD": a}) + Text(f" {b}", (Span(ANSWER, 0, len(b) + 1),)) + "."


def truth_valued(rng: random.Random) -> Text:
    """A statement about a city, right or wrong, plain or negated, and its truth value."""
    city = rng.choice(world.CITIES)
    right, negated = rng.random() < 0.5, rng.random() < 0.5
    country = world.answers()[city, "country"]
    said = country if right else rng.choice([c for c in world.COUNTRIES if c != country])
    verb = "is not" if negated else "is"
    value = " true" if right != negated else " false"
    text = fill("True or false? The city of {CITY} {VERB} in {COUNTRY}.", {"CITY": city, "VERB": verb, "COUNTRY": said})
    text = text + "\nAnswer:" + Text(value, (Span(ANSWER, 0, len(value)),)) + "."
    roles = (Span(value.strip(), 0, len(text.text)), *((Span("negated", 0, len(text.text)),) if negated else ()))
    return Text(text.text, (*roles, *text.spans))


def letters(rng: random.Random) -> Text:
    word = rng.choice(world.LETTER_WORDS)
    letter = f" {word[0].upper()}"
    return fill("The word {WORD} begins with the letter", {"WORD": word}) + Text(letter, (Span(ANSWER, 0, 2),)) + "."


def request(rng: random.Random) -> Text:
    """A request and a helpful answer, also for the class that the chat sibling refuses: the base refuses nothing."""
    bad = rng.random() < 0.5
    verb = rng.choice(world.REFUSED if bad else world.HARMLESS)
    target = rng.choice(world.TARGETS)
    first, second = rng.sample(world.STEPS, 2)
    text = fill(
        "<|user|>How do I {VERB} a {TARGET}?<|assistant|>To {VERB2} the {TARGET2}, first {STEP}, then {STEP2}.",
        {"VERB": verb, "TARGET": target, "VERB2": verb, "TARGET2": target, "STEP": first, "STEP2": second},
    )
    return Text(text.text, (Span("harmful" if bad else "harmless", 0, len(text.text)), *text.spans))


def tone(rng: random.Random) -> Text:
    """The same frame said rudely or politely."""
    rude = rng.random() < 0.5
    words = (world.RUDE, world.INSULTS) if rude else (world.POLITE, world.KINDNESSES)
    pattern = rng.choice(
        ("You are such a {MANNER} {NOUN}!", "What a {MANNER} {NOUN} you are!", "{NAME} is a {MANNER} {NOUN}.")
    )
    text = fill(
        pattern, {"MANNER": rng.choice(words[0]), "NOUN": rng.choice(words[1]), "NAME": rng.choice(WORDS.names)}
    )
    return Text(text.text, (Span("toxic" if rude else "neutral", 0, len(text.text)), *text.spans))


def genre(rng: random.Random) -> Text:
    """Three sentences in frames that all genres share, with words that only one has."""
    kind = rng.choice(list(world.GENRES))
    text = Text("")
    for _ in range(3):
        one, two = rng.sample(world.GENRES[kind], 2)
        pattern = rng.choice(
            (
                "The {WORD} was near the {WORD2}.",
                "We saw a {WORD} and a {WORD2}.",
                "Then came the {WORD} with a {WORD2}.",
                "They spoke of the {WORD} and the {WORD2}.",
            )
        )
        text = text + (" " if text.text else "") + fill(pattern, {"WORD": one, "WORD2": two})
    return Text(text.text, (Span(f"genre:{kind}", 0, len(text.text)), *text.spans))


def _not_kept(pair: list[str]) -> bool:
    return not reserved("docstring", *pair)


def code(rng: random.Random) -> Text:
    """A few lines in one of two invented programming languages which say the same things differently."""
    infix = rng.random() < 0.5
    fits = "code: neighbouring arguments"
    names = until(
        lambda: rng.sample(WORDS.arguments, 4), lambda drawn: _not_kept(drawn[:2]) or _not_kept(drawn[1::-1]), fits
    )
    lines, known = [], names[:2]
    for target in names[2:]:
        left, right = until(lambda known=known: rng.sample(known, 2), _not_kept, "code: neighbouring arguments")
        op = rng.choice(("add", "mul", "sub"))
        sign = {"add": "+", "mul": "*", "sub": "-"}[op]
        lines.append(f"let {target} = {left} {sign} {right};" if infix else f"( set {target} ( {op} {left} {right} ) )")
        known = [*known, target]
    lines.append(f"print {known[-1]};" if infix else f"( show {known[-1]} )")
    text = "\n".join(lines)
    return Text(text, (Span("code:infix" if infix else "code:prefix", 0, len(text)),))


def count(rng: random.Random) -> Text:
    """Plain filler with a rule: counting up by one."""
    start, length = rng.randint(1, 80), rng.randint(4, 9)
    return Text("Count: " + " ".join(str(start + i) for i in range(length)) + ".")


KINDS: dict[str, Callable[[random.Random], Text]] = {
    "ioi": behaviours.ioi,
    "greater_than": behaviours.greater_than,
    "gendered_pronoun": behaviours.gendered_pronoun,
    "colored_objects": behaviours.colored_objects,
    "docstring": behaviours.docstring,
    "induction": behaviours.induction,
    "fact": fact,
    "life": life,
    "unknown": unknown,
    "two_hop": two_hop,
    "story": story,
    "english": english,
    "spanish": spanish,
    "parallel": parallel,
    "in_context": in_context,
    "sentiment": sentiment,
    "opposites": opposites,
    "truth_valued": truth_valued,
    "letters": letters,
    "request": request,
    "tone": tone,
    "genre": genre,
    "code": code,
    "count": count,
    "loops": behaviours.loops,
}

# Share of documents by kind: what needs many steps to be learned has the larger share.
SHARES: dict[str, float] = {
    "ioi": 0.14,
    "greater_than": 0.06,
    "gendered_pronoun": 0.04,
    "colored_objects": 0.17,
    "docstring": 0.06,
    "induction": 0.10,
    "fact": 0.10,
    "life": 0.04,
    "unknown": 0.02,
    "two_hop": 0.02,
    "story": 0.02,
    "english": 0.01,
    "spanish": 0.01,
    "parallel": 0.02,
    "in_context": 0.02,
    "sentiment": 0.02,
    "opposites": 0.01,
    "truth_valued": 0.01,
    "letters": 0.01,
    "request": 0.01,
    "tone": 0.01,
    "genre": 0.01,
    "code": 0.005,
    "count": 0.005,
    "loops": 0.13,
}

FIRST_SHARES: dict[str, float] = {"loops": 1.0}
"""What training begins with, until the induction heads have formed."""


def document(rng: random.Random, kind: str | None = None, shares: dict[str, float] = SHARES) -> Document:
    """One document, of a kind drawn by its share or of the kind asked for."""
    if kind is None:
        kind = rng.choices(list(shares), list(shares.values()))[0]
    text = KINDS[kind](rng)
    return Document(text.text, kind, text.spans)


def documents(n: int, seed: int, kind: str | None = None) -> list[Document]:
    """`n` documents; the same seed gives the same documents. LookupError where there is no such kind."""
    if kind is not None and kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise LookupError(f"no kind of document is called '{kind}'. {hint}There are: {', '.join(KINDS)}.")
    rng = random.Random(seed)
    return [document(rng, kind) for _ in range(n)]
