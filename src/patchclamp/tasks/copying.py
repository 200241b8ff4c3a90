"""Tasks that are solved by copying from the context: induction (Olsson et al. 2022), docstrings (Heimersheim &
Janiak 2023).
"""

import random
from itertools import pairwise
from typing import Any

from patchclamp.tasks.example import Example, Span, Text, fill, reserved, until
from patchclamp.tasks.task import Task
from patchclamp.tasks.tokens import is_single_token
from patchclamp.tasks.words import WORDS, Words

SEQUENCE_WORDS = 16

DOCSTRING_TEMPLATE = (
    "def {FUNCTION}(self, {A_def}, {B_def}, {C_def}, {D_def}):\n"
    '    """{N1} {N2}\n\n'
    "    :param {A_doc}: {N3} {N4}\n"
    "    :param {B_doc}: {N5} {N6}\n"
    "    :param"
)


def induction(model: Any, n: int = 64, seed: int = 0) -> Task:
    """Random words, then a stretch of the same words again: " river stone horse ... river stone" -> " horse".

    `model` is a Model or a tokenizer. The repeat starts at a random word, so its lag varies and no fixed offset
    solves the task. Corrupted: the answer B and another word D change places in the first part, which makes D the
    right answer. Labels: A1 and B (the first occurrence), D, A2, END. The pair (A, B) never occurs as neighbours in
    the training text of `tales`. Olsson et al. 2022, arXiv:2209.11895.
    """
    words = WORDS.single_tokens(is_single_token(model), "induction", {"nouns": 24})
    rng = random.Random(seed)
    return Task.from_examples(model, "induction", [induction_example(rng, words) for _ in range(n)])


def induction_example(rng: random.Random, words: Words) -> Example:
    """One repeated sequence of 16 words whose last pair is reserved for testing."""
    length = rng.randint(9, 12)
    repeat = SEQUENCE_WORDS - length
    start = rng.randrange(length - repeat)
    a, b = start + repeat - 1, start + repeat
    first = until(
        lambda: rng.sample(words.nouns, length),
        lambda drawn: reserved("induction", drawn[a], drawn[b]),
        "induction: neighbouring words",
    )
    d = rng.choice([i for i in range(length) if not start <= i <= b])
    swapped = list(first)
    swapped[b], swapped[d] = first[d], first[b]
    roles = {a: "A1", b: "B", d: "D", SEQUENCE_WORDS - 1: "A2"}
    again = first[start:b]
    return Example(
        sequence(first + again, roles), sequence(swapped + again, roles), (" " + first[b],), (" " + first[d],)
    )


def sequence(words: list[str], roles: dict[int, str]) -> Text:
    """Words each with a space before it (also the first, so that all have their usual token), and the roles of some."""
    text = Text("")
    for index, word in enumerate(words):
        piece = " " + word
        text = text + Text(piece, (Span(roles[index], 0, len(piece)),) if index in roles else ())
    return text


def noun_pairs(rng: random.Random, words: Words, pairs: int) -> list[str]:
    """Different nouns, two and two; no pair is one that `induction` keeps for testing."""

    def fits(drawn: list[str]) -> bool:
        return not any(reserved("induction", x, y) for x, y in zip(drawn[::2], drawn[1::2], strict=True))

    return until(lambda: rng.sample(words.nouns, 2 * pairs), fits, "pairs of nouns")


def docstring(model: Any, n: int = 64, seed: int = 0) -> Task:
    """The next argument to document: `def f(self, load, size, files, last): ... :param load: ... :param size: ...
    :param` -> " files".

    `model` is a Model or a tokenizer. Wrong answers: the other three arguments. Corrupted: the third and the fourth
    argument change places in the signature. Labels: A_def to D_def, A_doc, B_doc, END. The second and third argument
    never follow each other in the training text of `tales`. Heimersheim & Janiak 2023, "A circuit for Python
    docstrings in a 4-layer attention-only transformer".
    """
    need = {"arguments": 8, "nouns": 8, "functions": 2}
    words = WORDS.single_tokens(is_single_token(model), "docstring", need)
    rng = random.Random(seed)
    return Task.from_examples(model, "docstring", [docstring_example(rng, words, True) for _ in range(n)])


def docstring_example(rng: random.Random, words: Words, held_out: bool) -> Example:
    """One function head; `held_out`: the second and third argument are reserved, otherwise no two neighbours are."""

    def fits(drawn: list[str]) -> bool:
        neighbours = [reserved("docstring", x, y) for x, y in pairwise(drawn)]
        return neighbours[1] if held_out else not any(neighbours)

    a, b, c, d = until(lambda: rng.sample(words.arguments, 4), fits, "docstring: neighbouring arguments")
    fillers = {
        "FUNCTION": rng.choice(words.functions),
        "A_def": a,
        "B_def": b,
        "C_def": c,
        "D_def": d,
        "A_doc": a,
        "B_doc": b,
    }
    fillers |= {f"N{i}": word for i, word in enumerate(noun_pairs(rng, words, 3), start=1)}
    swapped = fillers | {"C_def": d, "D_def": c}
    return Example(
        fill(DOCSTRING_TEMPLATE, fillers),
        fill(DOCSTRING_TEMPLATE, swapped),
        (" " + c,),
        (" " + d, " " + a, " " + b),
        extra={"C": c, "D": d},
    )
