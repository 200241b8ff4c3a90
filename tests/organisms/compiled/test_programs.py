"""The interpreter of each program says what a few lines of plain Python say, at every position."""

import random
from collections import Counter

import pytest

from patchclamp.organisms.compiled.programs import NAMES, PROGRAMS, program


def written(row, list_of):
    """What follows the separator: the next item of the list, or nothing where it is exhausted or has not begun."""
    if "|" not in row:
        return None
    end = row.index("|")
    items, done = list_of(row[:end]), len(row) - end - 1
    return items[done] if done < len(items) else None


def next_letter(row):
    if "|" not in row:
        return min((x for x in row if x > row[-1]), default=None)
    left = sorted(row[: row.index("|")])
    return next((x for x in left if row[-1] == "|" or x > row[-1]), None)


def balance(row):
    depths = [row[:i].count("(") - row[:i].count(")") for i in range(1, len(row) + 1)]
    return "balanced" if depths[-1] == 0 and min(depths) >= 0 else "not"


def most_frequent(row):
    """The token with the most occurrences so far; of several, the one that got there last."""
    counts, best = Counter(), None
    for token in row:
        counts[token] += 1
        best = token if best is None or counts[token] >= counts[best] else best
    return best


def indirect_object(row):
    counts = Counter(x for x in row if x in NAMES)
    subjects = [x for x in counts if counts[x] > 1]
    others = [x for x in counts if counts[x] == 1]
    return others[0] if subjects and others else None


def fraction(row):
    from fractions import Fraction

    share = Fraction(row.count("x"), len(row))
    return f"{share.numerator}/{share.denominator}"


def depth(row):
    opened = row.count("(") - row.count(")")
    return str(opened) if opened >= 0 else None


def induction(row):
    before = [i for i in range(len(row) - 1) if row[i] == row[-1]]
    return row[before[-1] + 1] if before else None


REFERENCE = {
    "previous-token": lambda row: row[-2] if len(row) > 1 else None,
    "shifted-copy": lambda row: row[-4] if len(row) > 3 else None,
    "induction": induction,
    "histogram": lambda row: str(row.count(row[-1])),
    "seen-before": lambda row: "seen" if row[-1] in row[:-1] else "new",
    "first-occurrence": lambda row: row.index(row[-1]) + 1,
    "last-repeated": lambda row: next((row[i] for i in range(len(row) - 1, -1, -1) if row[i] in row[:i]), None),
    "distinct-tokens": lambda row: str(len(set(row))),
    "most-frequent": most_frequent,
    "token-parity": lambda row: "odd" if row.count("1") % 2 else "even",
    "sum-modulo": lambda row: str(sum(map(int, row)) % 4),
    "majority": lambda row: ["tie", "a", "b"][(row.count("a") > row.count("b")) - (row.count("a") < row.count("b"))],
    "fraction": fraction,
    "bracket-depth": depth,
    "bracket-balance": balance,
    "nth-token": lambda row: row[int(row[0])] if len(row) > int(row[0]) else None,
    "reverse": lambda row: written(row, lambda items: items[::-1]),
    "copy": lambda row: written(row, lambda items: items),
    "sort": next_letter,
    "indirect-object": indirect_object,
}


def test_every_program_has_a_reference():
    assert set(REFERENCE) == {one.name for one in PROGRAMS} and len(PROGRAMS) >= 14


@pytest.mark.parametrize("name", list(REFERENCE))
def test_the_interpreter_says_what_plain_python_says_at_every_position(name):
    found, rng = program(name), random.Random(5)
    answers = set()
    for _ in range(60):
        row, answer = found.inputs(rng, rng.randint(found.shortest, found.length))
        row = list(row)
        assert list(found.evaluate(row)) == [REFERENCE[name](row[: i + 1]) for i in range(len(row))]
        answers.add(answer)
    assert len(answers) > 1


@pytest.mark.parametrize("name", list(REFERENCE))
def test_no_answer_is_given_to_most_inputs(name):
    found, rng = program(name), random.Random(1)
    counts = Counter(found.inputs(rng)[1] for _ in range(300))
    assert counts.most_common(1)[0][1] < 200


def test_an_unknown_program_is_told_the_nearest():
    with pytest.raises(LookupError, match="Did you mean 'reverse'"):
        program("revers")
