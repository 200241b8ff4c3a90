"""Tasks that bind attributes to things: colored objects (BIG-bench; Merullo et al. 2023)."""

import random
from typing import Any

from patchclamp.tasks.example import Example, fill, reserved, until
from patchclamp.tasks.task import Task
from patchclamp.tasks.tokens import is_single_token
from patchclamp.tasks.words import WORDS, Words

COLORED_TEMPLATE = (
    "Q: On the table, there is a {C1} {O1}, a {C2} {O2}, and a {C3} {O3}. What color is the {QUERY}?\nA: It is"
)


def colored_objects(model: Any, n: int = 64, seed: int = 0) -> Task:
    """ "... a red pencil, a blue cup, and a green box. What color is the cup?" -> " blue"; wrong: the other two
    colours.

    `model` is a Model or a tokenizer. Corrupted: the question asks for another of the three objects. Labels: C1, O1,
    C2, O2, C3, O3, QUERY, END. Pairs of object and colour are ones that the training text of `tales` never contains.
    Merullo, Eickhoff & Pavlick 2023, arXiv:2310.08744.
    """
    words = WORDS.single_tokens(is_single_token(model), "colored_objects", {"colors": 4, "objects": 8})
    rng = random.Random(seed)
    return Task.from_examples(model, "colored_objects", [colored_example(rng, words, True) for _ in range(n)])


def colored_example(rng: random.Random, words: Words, held_out: bool) -> Example:
    """Three coloured objects and a question; `held_out` says from which side of the reserved pairs all three come."""
    things: dict[str, str] = {}
    while len(things) < 3:
        color, thing = colored_object(rng, words, held_out)
        if thing not in things and color not in things.values():
            things[thing] = color
    fillers = {}
    for index, (thing, color) in enumerate(things.items(), start=1):
        fillers |= {f"O{index}": thing, f"C{index}": color}
    asked, other = rng.sample(list(things), 2)
    return Example(
        fill(COLORED_TEMPLATE, fillers | {"QUERY": asked}),
        fill(COLORED_TEMPLATE, fillers | {"QUERY": other}),
        (" " + things[asked],),
        (" " + things[other], *(" " + color for thing, color in things.items() if thing not in (asked, other))),
        fillers,
    )


def colored_object(rng: random.Random, words: Words, held_out: bool) -> tuple[str, str]:
    """A colour and an object, from one side of the reserved pairs."""
    return until(
        lambda: (rng.choice(words.colors), rng.choice(words.objects)),
        lambda drawn: reserved("colored_objects", drawn[1], drawn[0]) == held_out,
        "colored_objects: objects with a colour",
    )
