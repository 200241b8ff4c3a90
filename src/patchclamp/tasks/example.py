"""One prompt as text, with the roles its words play, and the rule that keeps test prompts out of training text.

Every built-in task has a function `*_example(rng, words, held_out)`. The tasks call it with `held_out=True`. A
generated training text (the `tales` organism) calls the same function with `held_out=False`: same templates, same
words, never the same combination.
"""

import hashlib
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Span:
    """Characters start:end of a text play `role`."""

    role: str
    start: int
    end: int


@dataclass(frozen=True)
class Text:
    """A text and the roles of its parts, in order of appearance."""

    text: str
    spans: tuple[Span, ...] = ()

    def __add__(self, other: "Text | str") -> "Text":
        other = other if isinstance(other, Text) else Text(other)
        shift = len(self.text)
        moved = tuple(Span(s.role, s.start + shift, s.end + shift) for s in other.spans)
        return Text(self.text + other.text, self.spans + moved)


@dataclass(frozen=True)
class Example:
    """A clean and a corrupted prompt with the right and the wrong answers to the clean one, all as text."""

    clean: Text
    corrupt: Text
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    extra: dict[str, str] = field(default_factory=dict)


def fill(template: str, fillers: dict[str, str]) -> Text:
    """Fill `{ROLE}` fields of a template and remember where each went.


    >>> fill("{A} met {B}.", {"A": "Mary", "B": "John"})
    Text(text='Mary met John.', spans=(Span(role='A', start=0, end=4), Span(role='B', start=9, end=13)))
    """
    text, spans = "", []
    for literal, role in _parsed(template):
        text += literal
        if role is not None:
            filler = fillers[role]
            spans.append(Span(role, len(text), len(text) + len(filler)))
            text += filler
    return Text(text, tuple(spans))


@lru_cache(maxsize=4096)
def _parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, role) for literal, role, _, _ in string.Formatter().parse(template))


@lru_cache(maxsize=1 << 17)
def reserved(task: str, *fillers: str) -> bool:
    """Whether a combination of fillers is kept for testing: a fifth of them, by a hash that never changes.

    Tasks draw only reserved combinations; the text that `tales` is trained on contains none. Sort the fillers first
    where their order has no meaning (a pair of names).
    """
    return bucket(task, *fillers) == 0


def bucket(task: str, *fillers: str) -> int:
    """A stable number 0 to 4 for a combination of fillers."""
    digest = hashlib.blake2b("\x1f".join((task, *fillers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 5


def until(draw: Callable[[], Drawn], accept: Callable[[Drawn], bool], what: str) -> Drawn:
    """Draw again until `accept`; RuntimeError after 10,000 draws, which means that nothing acceptable is left."""
    for _ in range(10_000):
        drawn = draw()
        if accept(drawn):
            return drawn
    raise RuntimeError(f"{what}: 10,000 draws gave no acceptable combination; the word lists are too short.")
