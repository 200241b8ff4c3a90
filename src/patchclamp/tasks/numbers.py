"""Tasks about numbers: greater-than (Hanna et al. 2023)."""

import random
from typing import Any

from patchclamp.tasks.example import Example, fill, reserved, until
from patchclamp.tasks.task import Task
from patchclamp.tasks.tokens import is_single_token, tokenizer_of
from patchclamp.tasks.words import WORDS, Words

YEARS_TEMPLATE = "The {NOUN} lasted from the year {CENTURY}{YY} to the year {CENTURY2}"
CENTURIES = tuple(range(11, 20))

# Every year whose successor in the same century exists and whose predecessor does: both sides have an answer.
YEARS = tuple((century, year) for century in CENTURIES for year in range(2, 99))


def greater_than(model: Any, n: int = 64, seed: int = 0) -> Task:
    """ "The war lasted from the year 1732 to the year 17" -> any of "33" to "99"; wrong: "00" to "32".

    `model` is a Model or a tokenizer whose tokens split a year into two two-digit pieces; ValueError where it does
    not. Corrupted: the start year ends in "01", after which nearly every answer is right. Labels: NOUN, CENTURY, YY,
    CENTURY2, END. Combinations of noun and year are ones that the training text of `tales` never contains. Hanna et
    al. 2023, arXiv:2305.00586.
    """
    words = WORDS.single_tokens(is_single_token(model), "greater_than", {"durations": 3})
    years = _two_token_years(model)
    rng = random.Random(seed)
    return Task.from_examples(model, "greater_than", [years_example(rng, words, True, years) for _ in range(n)])


def years_example(
    rng: random.Random, words: Words, held_out: bool, years: tuple[tuple[int, int], ...] = YEARS
) -> Example:
    """One span of years; `held_out` says from which side of the reserved combinations of noun and start year."""
    noun, (century, year) = until(
        lambda: (rng.choice(words.durations), rng.choice(years)),
        lambda drawn: reserved("greater_than", drawn[0], _year(*drawn[1])) == held_out,
        "greater_than: nouns with a year",
    )
    fillers = {"NOUN": noun, "CENTURY": str(century), "CENTURY2": str(century), "YY": f"{year:02d}"}
    return Example(
        fill(YEARS_TEMPLATE, fillers),
        fill(YEARS_TEMPLATE, fillers | {"YY": "01"}),
        tuple(f"{later:02d}" for later in range(year + 1, 100)),
        tuple(f"{earlier:02d}" for earlier in range(year + 1)),
    )


def _year(century: int, year: int) -> str:
    return f"{century}{year:02d}"


def _two_token_years(model: Any) -> tuple[tuple[int, int], ...]:
    """The years that this tokenizer splits into century and two digits, in centuries where "01" splits so too."""
    encode = tokenizer_of(model)
    texts = [f" {century}{year:02d}" for century in CENTURIES for year in range(100)]
    pieces = dict(zip(texts, encode(texts, add_special_tokens=False)["input_ids"], strict=True))
    heads = {century: encode(f" {century}", add_special_tokens=False)["input_ids"] for century in CENTURIES}

    def splits(century: int, year: int) -> bool:
        ids = pieces[f" {century}{year:02d}"]
        return len(ids) == 2 and ids[:1] == heads[century]

    years = tuple((century, year) for century, year in YEARS if splits(century, year) and splits(century, 1))
    if len(years) < 50:
        raise ValueError(
            f"greater_than: only {len(years)} of {len(YEARS)} years are two tokens of two digits for this tokenizer "
            f"(' 1732' is {len(pieces[' 1732'])} tokens), and the task needs 50."
        )
    return years
