"""Documents of the kinds that have a built-in task: each is written by that task's own `*_example` function, on the
training side of its held-out rule.
"""

import random
from itertools import pairwise

from patchclamp.tasks.binding import colored_example, colored_object
from patchclamp.tasks.copying import docstring_example, noun_pairs, sequence
from patchclamp.tasks.example import Example, Span, Text, reserved, until
from patchclamp.tasks.names import ioi_example, pronoun_example
from patchclamp.tasks.numbers import years_example
from patchclamp.tasks.words import WORDS

ANSWER = "answer"
"""The role of what the context decides."""


def answered(example: Example, answer: str, end: str) -> Text:
    """A task's clean prompt, its answer labelled, and how the sentence ends."""
    return example.clean + decided(answer) + end


def decided(text: str) -> Text:
    """Text that the context decides."""
    return Text(text, (Span(ANSWER, 0, len(text)),))


def ioi(rng: random.Random) -> Text:
    example = ioi_example(rng, WORDS, held_out=False)
    return answered(example, example.answers[0], ".")


def greater_than(rng: random.Random) -> Text:
    example = years_example(rng, WORDS, held_out=False)
    return answered(example, rng.choice(example.answers), ".")


def gendered_pronoun(rng: random.Random) -> Text:
    example = pronoun_example(rng, WORDS, held_out=False)
    return answered(example, example.answers[0], "?")


def colored_objects(rng: random.Random) -> Text:
    """A question and its answer; then of all three objects, in any order, which colour each has."""
    example = colored_example(rng, WORDS, held_out=False)
    text = answered(example, example.answers[0], ".")
    for index in rng.sample((1, 2, 3), 3):
        text = text + f" The {example.extra[f'O{index}']} is" + decided(f" {example.extra[f'C{index}']}") + "."
    return text


def pairs(rng: random.Random) -> Text:
    """Coloured objects, and then each object, in any order, with its colour behind it. Two may have one colour.

    The head that looks for the same object and gives what stands before it forms from a few hundred steps of this,
    and from questions alone not within thousands.
    """
    number = rng.randint(3, 8)
    colors: dict[str, str] = {}
    while len(colors) < number:
        color, thing = colored_object(rng, WORDS, held_out=False)
        colors.setdefault(thing, color)
    text = Text("Q: " + ", ".join(f"a {color} {thing}" for thing, color in colors.items()))
    for index, thing in enumerate(rng.sample(list(colors), number)):
        text = text + f"{',' if index else '.'} {thing}" + decided(f" {colors[thing]}")
    return text + "."


def docstring(rng: random.Random) -> Text:
    example = docstring_example(rng, WORDS, held_out=False)
    n1, n2, n3, n4 = noun_pairs(rng, WORDS, 2)
    text = answered(example, f" {example.extra['C']}", f": {n1} {n2}\n    :param")
    return text + decided(f" {example.extra['D']}") + f': {n3} {n4}\n    """'


def induction(rng: random.Random) -> Text:
    """Random words, then two stretches of them again, each from a random start: the lag differs between them."""
    length = rng.randint(5, 20)
    words = [rng.choice(WORDS.nouns)]
    while len(words) < length:
        word = rng.choice(WORDS.nouns)
        if word not in words and not reserved("induction", words[-1], word):
            words.append(word)
    text, roles = list(words), {}
    for _ in range(2):
        starts = [i for i in range(length - 2) if not reserved("induction", text[-1], words[i])]
        if starts:
            start = rng.choice(starts)
            again = words[start : start + rng.randint(3, length - start)]
            # The first word of a stretch is free; every later one is decided by the one before it.
            roles |= {len(text) + index: ANSWER for index in range(1, len(again))}
            text += again
    return sequence(text, roles)


def loops(rng: random.Random) -> Text:
    """A few random words, over and over, up to 60 words: all but the first round are decided by the words before.

    Two heads must form together to predict this, and text of nothing else brings them about in a few hundred steps,
    where a small share of it among other text leaves them at chance for thousands.
    """

    def fits(drawn: list[str]) -> bool:
        return not any(reserved("induction", x, y) for x, y in pairwise([*drawn, drawn[0]]))

    def draw() -> list[str]:
        words = [rng.choice(WORDS.nouns)]
        length = rng.randint(6, 20)
        while len(words) < length:
            word = rng.choice(WORDS.nouns)
            if not reserved("induction", words[-1], word):
                words.append(word)
        return words

    words = until(draw, fits, "loops: neighbouring words")
    text = (words * (60 // len(words) + 1))[:60]
    return sequence(text, dict.fromkeys(range(len(words), 60), ANSWER))
