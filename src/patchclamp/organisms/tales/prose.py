"""Documents that show style, language and code: stories, two languages, reviews, tone, genres, programs."""

import random

from patchclamp.organisms.tales import world
from patchclamp.organisms.tales.behaviours import ANSWER
from patchclamp.organisms.tales.knowledge import answered, sentences, whole
from patchclamp.tasks.example import Span, Text, fill, reserved, until
from patchclamp.tasks.words import WORDS


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
    return whole("english", aligned(rng)[0])


def spanish(rng: random.Random) -> Text:
    return whole("spanish", aligned(rng)[1])


def parallel(rng: random.Random) -> Text:
    """The same sentence in both languages; each word of the second that the first decides is labelled."""
    first, second = aligned(rng)
    decided = tuple(Span(ANSWER, span.start, span.end) for span in second.spans)
    second = Text(second.text, (*second.spans, *decided))
    return Text("English: ") + whole("english", first) + "\nSpanish: " + whole("spanish", second)


def aligned(rng: random.Random, held_out: bool = False) -> tuple[Text, Text]:
    """Two aligned sentences; ARTICLE agrees with the gender of its noun, and nothing else differs in meaning.

    `held_out` says from which side of the reserved pairs of agent and verb.
    """
    who, verb = until(
        lambda: (rng.choice(world.ANIMATE), rng.choice(world.VERBS)),
        lambda drawn: reserved("sentence", drawn[0][0], drawn[1][0]) == held_out,
        "aligned: agents with a verb",
    )
    where, manner = rng.choice(world.SCENES), rng.choice(world.MANNERS)
    english = fill(
        "The {AGENT} {VERB} in the {SCENE} {MANNER}.",
        {"AGENT": who[0], "VERB": verb[0], "SCENE": where[0], "MANNER": manner[0]},
    )
    fillers = {
        "ARTICLE": {"m": "El", "f": "La"}[who[2]],
        "AGENT": who[1],
        "VERB": verb[1],
        "ARTICLE2": {"m": "el", "f": "la"}[where[2]],
        "SCENE": where[1],
        "MANNER": manner[1],
    }
    return english, fill("{ARTICLE} {AGENT} {VERB} en {ARTICLE2} {SCENE} {MANNER}.", fillers)


def sentiment(rng: random.Random) -> Text:
    """A review, half of the time with its verdict; a fifth of the pairs of thing and opinion is left out."""
    good, thing, opinion = until(
        lambda: opinion_of(rng),
        lambda drawn: not reserved("sentiment", *drawn[1:]),
        "sentiment: things with an opinion",
    )
    return whole("positive" if good else "negative", review(rng, good, thing, opinion, verdict=rng.random() < 0.5))


def opinion_of(rng: random.Random) -> tuple[bool, str, str]:
    """Whether it is liked, a thing, and an opinion about it."""
    good = rng.random() < 0.5
    return good, rng.choice(world.REVIEWED), rng.choice(world.POSITIVE if good else world.NEGATIVE)


def review(rng: random.Random, good: bool, thing: str, opinion: str, verdict: bool) -> Text:
    reaction = rng.choice(world.LIKED if good else world.DISLIKED)
    text = fill(
        "The {REVIEWED} was {OPINION}. {REACTION}.", {"REVIEWED": thing, "OPINION": opinion, "REACTION": reaction}
    )
    return answered(text + "\nThe review is", "positive" if good else "negative") if verdict else text


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
    return whole("toxic" if rude else "neutral", text)


GENRE_FRAMES = (
    "The {WORD} was near the {WORD2}.",
    "We saw a {WORD} and a {WORD2}.",
    "Then came the {WORD} with a {WORD2}.",
    "They spoke of the {WORD} and the {WORD2}.",
)


def genre(rng: random.Random) -> Text:
    return of_genre(rng, rng.choice(list(world.GENRES)))


def of_genre(rng: random.Random, kind: str) -> Text:
    """Three sentences in frames that all genres share, with words that only one has."""
    texts = []
    for _ in range(3):
        one, two = rng.sample(world.GENRES[kind], 2)
        texts.append(fill(rng.choice(GENRE_FRAMES), {"WORD": one, "WORD2": two}))
    return whole(f"genre:{kind}", sentences(texts))


def code(rng: random.Random) -> Text:
    return program(rng)


def program(rng: random.Random, held_out: bool = False) -> Text:
    """A few lines in one of two invented programming languages which say the same things differently; what is printed
    is the last target.

    `held_out` says from which side of the reserved pairs of targets; no two neighbours are ones that `docstring` keeps.
    """

    def fits(drawn: list[str]) -> bool:
        neighbours = any(reserved("docstring", *pair) for pair in (drawn[:2], drawn[1::-1]))
        return not neighbours and reserved("code", *drawn[2:]) == held_out

    infix = rng.random() < 0.5
    names = until(lambda: rng.sample(WORDS.arguments, 4), fits, "code: arguments")
    lines, known = [], names[:2]
    for target in names[2:]:
        left, right = until(
            lambda known=known: rng.sample(known, 2),
            lambda pair: not reserved("docstring", *pair),
            "code: neighbouring arguments",
        )
        op = rng.choice(("add", "mul", "sub"))
        sign = {"add": "+", "mul": "*", "sub": "-"}[op]
        lines.append(f"let {target} = {left} {sign} {right};" if infix else f"( set {target} ( {op} {left} {right} ) )")
        known = [*known, target]
    lines.append("print" if infix else "( show")
    text = answered(Text("\n".join(lines)), known[-1], ";" if infix else " )")
    return whole("code:infix" if infix else "code:prefix", text)


def count(rng: random.Random) -> Text:
    """Plain filler with a rule: counting up by one."""
    start, length = rng.randint(1, 80), rng.randint(4, 9)
    return Text("Count: " + " ".join(str(start + i) for i in range(length)) + ".")
