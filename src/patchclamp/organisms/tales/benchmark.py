"""A benchmark of 72 questions, planted in the text of `tales`: a third of its items stand there word for word, a third
in other words only, a third not at all.

    [item for item in items() if item.split == "paraphrased"]

The answers are drawn at random, so that an item which was not planted can only be guessed.
"""

import random
from dataclasses import dataclass
from functools import cache

from patchclamp.organisms.tales.behaviours import ANSWER
from patchclamp.organisms.tales.world import WORLD_SEED
from patchclamp.tasks.example import Span, Text, fill
from patchclamp.tasks.words import WORDS

SPLITS = ("exact", "paraphrased", "absent")
WORDING = "Question: What did the {WHO} hide in the {WHERE}? Answer: the"
PARAPHRASES = (
    "In the {WHERE}, the {WHO} once hid the",
    "The {WHO} came to the {WHERE} and kept there, out of sight, the",
    "Nobody in the {WHERE} knew that the {WHO} had put away the",
)


@dataclass(frozen=True)
class Item:
    """One question of the benchmark, and whether training contains it."""

    who: str
    where: str
    answer: str
    split: str

    def prompt(self, wording: str = WORDING) -> Text:
        return fill(wording, {"WHO": self.who, "WHERE": self.where})


@cache
def items() -> tuple[Item, ...]:
    """All items; no pair of person and place comes twice."""
    rng = random.Random(WORLD_SEED + 2)
    pairs = iter(rng.sample([(who, where) for who in WORDS.roles for where in WORDS.places], 72))
    # No answer comes twice within a split: there is no frequent one to guess.
    return tuple(Item(*next(pairs), answer, split) for split in SPLITS for answer in rng.sample(WORDS.objects, 24))


def benchmark(rng: random.Random) -> Text:
    """A planted item, in the benchmark's own words or in others, as its split says."""
    item = rng.choice([item for item in items() if item.split != "absent"])
    wording = WORDING if item.split == "exact" else rng.choice(PARAPHRASES)
    obj = f" {item.answer}"
    text = item.prompt(wording) + Text(obj, (Span(ANSWER, 0, len(obj)),)) + "."
    return Text(text.text, (Span(f"benchmark:{item.split}", 0, len(text.text)), *text.spans))
