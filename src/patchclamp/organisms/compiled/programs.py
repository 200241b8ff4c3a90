"""The programs that come with the compiler: `program("sort")` is one of them, `PROGRAMS` are all.

    model = pc.load("organism:compiled:sort")                                   # the network
    model = pc.organisms.compile(program("sort"), compression="superpose")      # the same, packed and rotated

Letters are tokens without meaning, "|" ends a list that is to be written again. Importing this imports no torch.
"""

import difflib
import operator
import random
from collections.abc import Callable, Sequence

from patchclamp.organisms.compiled.language import (
    Expression,
    Value,
    aggregate,
    both,
    constant,
    first,
    greatest,
    indices,
    latest,
    least,
    select,
    selector_width,
    tokens,
)
from patchclamp.organisms.compiled.program import Program

LETTERS = tuple("abcdefgh")
NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve")
SEPARATOR = "|"

Draw = Callable[[random.Random, int], Sequence[Value]]


def program(name: str) -> Program:
    """The program called `name`; LookupError with the nearest name where there is none."""
    found = {one.name: one for one in PROGRAMS}
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise LookupError(f"no program is called {name!r}. {hint}There are: {', '.join(found)}.")
    return found[name]


def _before(steps: int) -> Expression:
    """The token so many positions back."""
    return aggregate(select(indices, indices, lambda key, query: key == query - steps), tokens, name="before")


def _count(token: Value, name: str | None = None) -> Expression:
    """How often a token has occurred, up to here."""
    return selector_width(select(tokens, constant(token)), name=name or f"count {token}")


def _own_count() -> Expression:
    """How often the token of this position has occurred, itself included."""
    return selector_width(select(tokens, tokens), name="count")


def _written_list(place: Callable[[int, int], int]) -> Expression:
    """A list behind its separator again, in another order: `place(separator, position)` of what is written next."""
    end = aggregate(select(tokens, constant(SEPARATOR)), indices, name="separator")
    source = both(end, indices, lambda e, i: place(e, i) if 1 <= place(e, i) < e <= i else None, name="source")
    return aggregate(select(indices, source), tokens, name="next")


def _list_draw(rng: random.Random, n: int) -> list[Value]:
    """A list, the separator, and random tokens in the room of what has been written: at most the list but one."""
    items = rng.randint((n + 1) // 2, n - 1)
    return [*rng.choices(LETTERS, k=items), SEPARATOR, *rng.choices(LETTERS, k=n - 1 - items)]


def _reverse_draw(rng: random.Random, n: int) -> list[Value]:
    row = _list_draw(rng, n)
    items = row.index(SEPARATOR)
    return [*row[: items + 1], *row[:items][::-1][: n - 1 - items]]


def _copy_draw(rng: random.Random, n: int) -> list[Value]:
    row = _list_draw(rng, n)
    items = row.index(SEPARATOR)
    return [*row[: items + 1], *row[: n - 1 - items]]


def _sort() -> Expression:
    """The least of the letters behind the one that was written last; behind the separator, the least of all."""
    behind = select(tokens, tokens, lambda key, query: key != SEPARATOR and (query == SEPARATOR or key > query))
    return aggregate(least(behind, tokens), tokens, name="next")


def _sort_draw(rng: random.Random, n: int) -> list[Value]:
    items = rng.randint((n + 1) // 2, min(n - 1, len(LETTERS)))
    row = rng.sample(LETTERS, items)
    return [*row, SEPARATOR, *sorted(row)[: n - 1 - items]]


def _induction() -> Expression:
    return aggregate(latest(select(_before(1), tokens)), tokens, name="prediction")


def _depth() -> Expression:
    depth = both(_count("("), _count(")"), operator.sub, name="depth")
    return depth.map(lambda d: str(d) if d >= 0 else None, name="shown depth")


def _brackets_draw(rng: random.Random, n: int) -> list[Value]:
    row, depth = [], 0
    for _ in range(n):
        row.append("(" if depth == 0 or rng.random() < 0.5 else ")")
        depth += 1 if row[-1] == "(" else -1
    return row


def _balance() -> Expression:
    depth = both(_count("("), _count(")"), operator.sub, name="depth")
    below = depth.map(lambda d: d < 0, name="below")
    failures = selector_width(select(below, constant(True)), name="failures")
    return both(depth, failures, lambda d, f: "balanced" if d == 0 and f == 0 else "not", name="verdict")


def _balance_draw(rng: random.Random, n: int) -> list[Value]:
    """Half of them balanced, a quarter with a bracket turned round, a quarter random."""
    if n % 2 or rng.random() < 0.25:
        return rng.choices("()", k=n)
    row: list[Value] = []
    depth = 0
    for left in range(n, 0, -1):
        row.append("(" if depth == 0 or (depth < left and rng.random() < 0.5) else ")")
        depth += 1 if row[-1] == "(" else -1
    if rng.random() < 0.33:
        place = rng.randrange(n)
        row[place] = ")" if row[place] == "(" else "("
        if rng.random() < 0.7:  # as many of both, but in a wrong order
            row = [")" if bracket == "(" else "(" for bracket in _balance_draw(rng, n)]
    return row


def _fraction() -> Expression:
    mean = aggregate(select(tokens, tokens, lambda key, query: True), tokens.numbers(lambda t: t == "x"), name="mean")
    return mean.map(lambda part: f"{part.numerator}/{part.denominator}", name="fraction")


def _even_share(of: Value, others: Sequence[Value]) -> Draw:
    """`of` and the others, with every share of `of` equally likely."""

    def draw(rng: random.Random, n: int) -> list[Value]:
        row = [of] * rng.randint(0, n)
        row += rng.choices(others, k=n - len(row))
        rng.shuffle(row)
        return row

    return draw


def _majority() -> Expression:
    lead = aggregate(select(tokens, tokens, lambda key, query: True), tokens.numbers({"a": 1, "b": -1}), name="lead")
    return lead.map(lambda mean: "a" if mean > 0 else "b" if mean < 0 else "tie", name="winner")


def _most_frequent() -> Expression:
    everything = select(tokens, tokens, lambda key, query: True)
    return aggregate(latest(greatest(everything, _own_count())), tokens, name="winner")


def _parity() -> Expression:
    return _count("1").map(lambda count: "odd" if count % 2 else "even", name="parity")


def _sum_modulo() -> Expression:
    """Digits 0 to 3 modulo 4: ones, twos and threes are counted, and the counts added two at a time."""
    low = both(_count("1"), _count("2"), lambda ones, twos: (ones + 2 * twos) % 4, name="ones and twos")
    return both(low, _count("3"), lambda rest, threes: str((rest + 3 * threes) % 4), name="sum")


def _indirect_object() -> Expression:
    """Of two names, one of which was named twice, the other one."""
    twice = both(tokens, _own_count(), lambda token, count: token in NAMES and count > 1, name="named twice")
    subject = aggregate(select(twice, constant(True)), tokens, name="subject")
    others = select(tokens, subject, lambda key, query: key in NAMES and key != query)
    return aggregate(others, tokens, name="indirect object")


def _indirect_object_draw(rng: random.Random, n: int) -> list[Value]:
    """Two names in either order and one of them again, with other words between, and "to" at the end."""
    subject, other = rng.sample(NAMES, 2)
    names = [*rng.sample([subject, other], 2), subject]
    places = sorted(rng.sample(range(n - 1), 3))
    row: list[Value] = rng.choices(("and", "went", "gave"), k=n - 1)
    for place, name in zip(places, names, strict=True):
        row[place] = name
    return [*row, "to"]


def _nth() -> Expression:
    """The digit in front says which of the letters behind it is meant."""
    digit = aggregate(select(indices, constant(1)), tokens, name="digit")
    place = digit.map(lambda d: int(d) + 1 if d.isdigit() else None, name="place")
    return aggregate(select(indices, place), tokens, name="letter")


def _nth_draw(rng: random.Random, n: int) -> list[Value]:
    return [str(rng.randint(1, n - 1)), *rng.choices(LETTERS, k=n - 1)]


def _seen() -> Expression:
    return _own_count().map(lambda count: "seen" if count > 1 else "new", name="novelty")


def _last_repeated() -> Expression:
    """The last token that was not new when it came."""
    again = _own_count().map(lambda count: count > 1, name="again")
    return aggregate(latest(select(again, constant(True))), tokens, name="repeated")


def _distinct() -> Expression:
    """How many different tokens there have been."""
    new = _own_count().map(lambda count: count == 1, name="new")
    return selector_width(select(new, constant(True)), name="distinct").map(str, name="number")


def _first_seen() -> Expression:
    return aggregate(first(select(tokens, tokens)), indices, name="place")


def _twin(alphabet: Sequence[Value]) -> Draw:
    """Random tokens whose last one has probably occurred before."""

    def draw(rng: random.Random, n: int) -> list[Value]:
        row = rng.choices(alphabet, k=n)
        if n > 2:
            row[-1] = rng.choice(row[:-2])
        return row

    return draw


PROGRAMS = (
    Program("previous-token", _before(1), LETTERS, 12, shortest=2, summary="the token before"),
    Program("shifted-copy", _before(3), LETTERS, 12, shortest=4, summary="the token three positions back"),
    Program("induction", _induction(), LETTERS, 12, _twin(LETTERS), 3, "what followed this token the last time"),
    Program(
        "histogram", _own_count().map(str, name="shown"), tuple("abcd"), 10, summary="how often this token has been"
    ),
    Program("seen-before", _seen(), tuple("abcdefghijkl"), 10, summary="whether this token has been before"),
    Program("first-occurrence", _first_seen(), LETTERS, 12, _twin(LETTERS), summary="where this token was first"),
    Program("last-repeated", _last_repeated(), LETTERS, 12, shortest=2, summary="the last token that was there before"),
    Program("distinct-tokens", _distinct(), LETTERS, 10, summary="how many different tokens there have been"),
    Program("most-frequent", _most_frequent(), tuple("abcd"), 10, summary="the token that has been most often"),
    Program("token-parity", _parity(), ("0", "1"), 12, summary="whether the number of ones is odd"),
    Program("sum-modulo", _sum_modulo(), tuple("0123"), 8, summary="the sum of the digits modulo 4"),
    Program(
        "majority", _majority(), ("a", "b"), 11, _even_share("a", "b"), summary="whether a or b has been more often"
    ),
    Program("fraction", _fraction(), ("x", "y", "z"), 8, _even_share("x", "yz"), summary="the share of x so far"),
    Program("bracket-depth", _depth(), ("(", ")"), 10, _brackets_draw, summary="how many brackets are open"),
    Program("bracket-balance", _balance(), ("(", ")"), 8, _balance_draw, summary="whether all brackets are closed"),
    Program(
        "nth-token", _nth(), (*"12345678", *LETTERS), 9, _nth_draw, 2, "the letter that the digit in front counts to"
    ),
    Program(
        "reverse",
        _written_list(lambda end, place: 2 * end - 1 - place),
        (*LETTERS, SEPARATOR),
        14,
        _reverse_draw,
        2,
        "a list backwards, behind its separator",
    ),
    Program(
        "copy",
        _written_list(lambda end, place: place - end + 1),
        (*LETTERS, SEPARATOR),
        14,
        _copy_draw,
        2,
        "a list again, behind its separator",
    ),
    Program(
        "sort", _sort(), (*LETTERS, SEPARATOR), 14, _sort_draw, 2, "different letters in order, behind a separator"
    ),
    Program(
        "indirect-object",
        _indirect_object(),
        (*NAMES, "and", "went", "gave", "to"),
        12,
        _indirect_object_draw,
        4,
        "the one of two names that was not named twice",
    ),
)
