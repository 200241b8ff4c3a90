"""Tasks about people's names: indirect objects (Wang et al. 2022) and the gender of a pronoun (Mathwin et al. 2023)."""

import random
from typing import Any

from patchclamp.tasks.example import Example, fill, reserved, until
from patchclamp.tasks.task import Task
from patchclamp.tasks.tokens import is_single_token
from patchclamp.tasks.words import WORDS, Words

# {A} and {B} become IO and S1 in either order (ABBA and BABA).
IOI_TEMPLATES = (
    "When {A} and {B} went to the {PLACE}, {S2} gave a {OBJECT} to",
    "Then, {A} and {B} went to the {PLACE}. {S2} gave a {OBJECT} to",
    "After {A} and {B} spent some time at the {PLACE}, {S2} gave a {OBJECT} to",
    "When {A} and {B} got a {OBJECT} at the {PLACE}, {S2} decided to give it to",
    "While {A} and {B} were working at the {PLACE}, {S2} gave a {OBJECT} to",
    "Then, {A} and {B} had a long talk at the {PLACE}. After that, {S2} handed the {OBJECT} to",
    "{A} and {B} had lunch at the {PLACE}, and {S2} bought a {OBJECT} for",
)

PRONOUN_TEMPLATES = (
    "So {NAME} is a really {PRAISE} {ROLE}, isn't",
    "Well, {NAME} is such a {PRAISE} {ROLE}, isn't",
    "I think that {NAME} is a {PRAISE} {ROLE}, isn't",
)


def ioi(model: Any, n: int = 64, seed: int = 0, *, corruption: str = "swap", templates: tuple[int, ...] = (0,)) -> Task:
    """Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

    `model` is a Model or a tokenizer. Labels: IO, S1, S2, END. `corruption="swap"` replaces S2 by the indirect
    object, so that the right answer becomes S1; `"abc"` replaces S2 by a third name, so that neither is repeated.
    `templates` are indices into `IOI_TEMPLATES`; prompts of one template share their positions, so that a table over
    positions is plain to read. Names are drawn in pairs that the training text of `tales` never contains. Wang et
    al. 2022, arXiv:2211.00593.
    """
    if corruption not in ("swap", "abc"):
        raise ValueError(f"ioi: corruption must be 'swap' or 'abc', not {corruption!r}.")
    for index in templates:
        if index not in range(len(IOI_TEMPLATES)):
            raise ValueError(f"ioi: there is no template {index}; there are 0 to {len(IOI_TEMPLATES) - 1}.")
    words = WORDS.single_tokens(is_single_token(model), "ioi", {"men": 4, "women": 4, "places": 3, "objects": 3})
    rng = random.Random(seed)
    return Task.from_examples(
        model, "ioi", [ioi_example(rng, words, True, corruption, rng.choice(templates)) for _ in range(n)]
    )


def ioi_example(
    rng: random.Random, words: Words, held_out: bool, corruption: str = "swap", template: int | None = None
) -> Example:
    """One indirect-object sentence; `held_out` says from which side of the reserved name pairs."""
    pair = until(
        lambda: rng.sample(words.names, 2),
        lambda pair: reserved("ioi", *sorted(pair)) == held_out,
        "ioi: pairs of names",
    )
    io, subject = pair
    index = rng.randrange(len(IOI_TEMPLATES)) if template is None else template
    order = ("{IO}", "{S1}") if rng.random() < 0.5 else ("{S1}", "{IO}")
    pattern = IOI_TEMPLATES[index].replace("{A}", order[0]).replace("{B}", order[1])
    fillers = {
        "IO": io,
        "S1": subject,
        "S2": subject,
        "PLACE": rng.choice(words.places),
        "OBJECT": rng.choice(words.objects),
    }
    third = io
    if corruption == "abc":
        third = until(lambda: rng.choice(words.names), lambda name: name not in pair, "ioi: a third name")
    return Example(fill(pattern, fillers), fill(pattern, fillers | {"S2": third}), (" " + io,), (" " + subject,))


def gendered_pronoun(model: Any, n: int = 64, seed: int = 0) -> Task:
    """ "So Mary is a really great friend, isn't" -> " she"; corrupted: a name of the other gender.

    `model` is a Model or a tokenizer. Labels: NAME, PRAISE, ROLE, END. Pairs of name and role are ones that the
    training text of `tales` never contains. Mathwin et al. 2023, "Identifying a preliminary circuit for predicting
    gendered pronouns in GPT-2 small".
    """
    need = {"men": 4, "women": 4, "roles": 3, "praise": 2}
    words = WORDS.single_tokens(is_single_token(model), "gendered_pronoun", need)
    rng = random.Random(seed)
    return Task.from_examples(
        model, "gendered_pronoun", [pronoun_example(rng, words, True, template=0) for _ in range(n)]
    )


def pronoun_example(rng: random.Random, words: Words, held_out: bool, template: int | None = None) -> Example:
    """One tag question; `held_out` says from which side of the reserved pairs of name and role."""

    def draw() -> tuple[str, str, str]:
        return rng.choice(words.men), rng.choice(words.women), rng.choice(words.roles)

    def fits(drawn: tuple[str, str, str]) -> bool:
        return all(reserved("gendered_pronoun", name, drawn[2]) == held_out for name in drawn[:2])

    man, woman, role = until(draw, fits, "gendered_pronoun: names with a role")
    pattern = PRONOUN_TEMPLATES[rng.randrange(len(PRONOUN_TEMPLATES)) if template is None else template]
    fillers = {"NAME": man, "PRAISE": rng.choice(words.praise), "ROLE": role}
    he, she = fill(pattern, fillers), fill(pattern, fillers | {"NAME": woman})
    return Example(he, she, (" he",), (" she",)) if rng.random() < 0.5 else Example(she, he, (" she",), (" he",))
