"""The language of compiled programs: sequences of values, as plain data.

    seen = aggregate(select(indices, indices, lambda k, q: k == q - 1), tokens, name="previous")
    match = latest(select(seen, tokens, operator.eq))           # of all that match, the last one
    answer = aggregate(match, tokens, name="prediction")        # that is induction
    Program("induction", answer, tokens=("a", "b", "c"), length=10)

An expression has a value at every position: a categorical one (anything hashable, or None: no value) or a number. This
is RASP (Weiss et al. 2021, arXiv:2106.06981) for a causal transformer: a query sees the keys up to its own position,
and never BOS, which stands in front at position 0 and is where attention rests when nothing is selected. `program`
binds expressions to an alphabet and a length and evaluates them, `compile` turns them into weights.
"""

import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Self

Value = Hashable
"""A token, a count, a flag; a `Fraction` where the expression is numerical; None where there is no value."""

Order = tuple["Expression", int]
"""What candidates are ordered by, and whether the greatest (1) or the least (-1) is wanted."""


class ProgramError(ValueError):
    """A program that has no meaning, or none on this input; the message says which expression, where and why."""


@dataclass(frozen=True, eq=False)
class Expression:
    """A value at every position. Two expressions are the same when they are the same object."""

    name: str | None = field(default=None, kw_only=True)

    @property
    def inputs(self) -> "tuple[Expression, ...]":
        """The expressions that it reads at once."""
        return ()

    @property
    def numerical(self) -> bool:
        """Whether its values are numbers, which can be averaged, and not categories."""
        return False

    def map(self, function: Callable[[Any], Value], *, missing: Value = None, name: str | None = None) -> "Map":
        """A category made of each value by itself; `missing` where there is no value (and None, no value, stays so)."""
        return Map(self, function, missing, name=name)

    def numbers(self, function: "Callable[[Any], Any] | Mapping[Any, Any]", *, name: str | None = None) -> "Map":
        """A number made of each value by itself; 0 where there is no value.

        >>> score = tokens.numbers({"a": 1, "b": -1})
        """
        return Map(self, function.__getitem__ if isinstance(function, Mapping) else function, 0, True, name=name)

    def otherwise(self, value: Value, *, name: str | None = None) -> "Map":
        """Its own values, and `value` where it has none."""
        return Map(self, lambda own: own, value, name=name)

    def named(self, name: str) -> Self:
        """The same with a name, for sums: `(opened - closed).named("depth")`."""
        return replace(self, name=name)

    def __add__(self, other: "Expression | int | Fraction") -> "Linear":
        return _linear(self, 1, other, 1)

    def __sub__(self, other: "Expression | int | Fraction") -> "Linear":
        return _linear(self, 1, other, -1)

    def __mul__(self, factor: int | Fraction) -> "Linear":
        return _linear(self, factor, 0, 1)

    __rmul__ = __mul__

    def __neg__(self) -> "Linear":
        return _linear(self, -1, 0, 1)


@dataclass(frozen=True, eq=False)
class Tokens(Expression):
    """The token itself."""


@dataclass(frozen=True, eq=False)
class Indices(Expression):
    """The position: 1 for the first token, since BOS is at 0."""


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """The same value at every position. It lives in no component: whoever reads it has it as a bias."""

    value: Value


@dataclass(frozen=True, eq=False)
class Map(Expression):
    """A function of one expression, position by position: an MLP."""

    source: Expression
    function: Callable[[Any], Any] = field(repr=False)
    missing: Value = None
    number: bool = False

    @property
    def inputs(self) -> tuple[Expression, ...]:
        return (self.source,)

    @property
    def numerical(self) -> bool:
        return self.number


@dataclass(frozen=True, eq=False)
class Both(Expression):
    """A function of two categorical expressions, position by position: an MLP with a neuron for each pair of values."""

    left: Expression
    right: Expression
    function: Callable[[Any, Any], Any] = field(repr=False)

    @property
    def inputs(self) -> tuple[Expression, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, eq=False)
class Linear(Expression):
    """A sum of numerical expressions with coefficients, and a constant: an MLP with two neurons."""

    terms: tuple[tuple[Expression, Fraction], ...]
    constant: Fraction = Fraction(0)

    @property
    def inputs(self) -> tuple[Expression, ...]:
        return tuple(term for term, _ in self.terms)

    @property
    def numerical(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Selector:
    """Which keys each query attends to: those up to its position for which `predicate(key, query)` holds.

    With an `order`, only those that come first in it: by its first entry, and among equals by the next.
    """

    keys: Expression
    queries: Expression
    predicate: Callable[[Any, Any], Any] = field(repr=False)
    order: tuple[Order, ...] = ()

    @property
    def inputs(self) -> tuple[Expression, ...]:
        return (self.keys, self.queries, *(by for by, _ in self.order))


@dataclass(frozen=True, eq=False)
class Aggregate(Expression):
    """The mean of the selected numbers, or the one category that was selected: a head."""

    selector: Selector
    values: Expression

    @property
    def inputs(self) -> tuple[Expression, ...]:
        return (*self.selector.inputs, self.values)

    @property
    def numerical(self) -> bool:
        return self.values.numerical


@dataclass(frozen=True, eq=False)
class Share(Expression):
    """1 / (1 + the number of selected keys): what BOS gets of a head that attends to it and to them alike."""

    selector: Selector

    @property
    def inputs(self) -> tuple[Expression, ...]:
        return self.selector.inputs

    @property
    def numerical(self) -> bool:
        return True


tokens = Tokens(name="tokens")
indices = Indices(name="indices")


def constant(value: Value) -> Constant:
    """`value` at every position, BOS included."""
    return Constant(value)


def both(
    left: Expression, right: Expression, function: Callable[[Any, Any], Value], *, name: str | None = None
) -> Both:
    """A category made of two categories at the same position; no value where either has none.

    >>> after = both(tokens, indices, lambda token, index: f"{token}{index}")
    """
    return Both(left, right, function, name=name)


def select(keys: Expression, queries: Expression, predicate: Callable[[Any, Any], Any] = operator.eq) -> Selector:
    """For each query, the keys at or before it for which `predicate(key, query)` holds; never BOS, never None."""
    return Selector(keys, queries, predicate)


def greatest(selector: Selector, by: Expression) -> Selector:
    """Of the selected keys, those where `by` is greatest; of several, those that the next order prefers."""
    return replace(selector, order=(*selector.order, (by, 1)))


def least(selector: Selector, by: Expression) -> Selector:
    """Of the selected keys, those where `by` is least; of several, those that the next order prefers."""
    return replace(selector, order=(*selector.order, (by, -1)))


def latest(selector: Selector) -> Selector:
    """Of the selected keys, the last one."""
    return greatest(selector, indices)


def first(selector: Selector) -> Selector:
    """Of the selected keys, the first one."""
    return least(selector, indices)


def aggregate(selector: Selector, values: Expression, *, name: str | None = None) -> Aggregate:
    """What the selected keys hold: the mean of numbers (0 of none), the one value of categories (None of none).

    That several different categories are selected is an error when it happens; `latest`, `first`, `greatest` and
    `least` choose among them.
    """
    return Aggregate(selector, values, name=name)


def selector_width(selector: Selector, *, name: str | None = None) -> Map:
    """How many keys are selected, 0 to the length: a head whose share at BOS an MLP turns into the count.

    The share is a variable of its own, called "NAME share".
    """
    if selector.order:
        raise ProgramError("selector_width counts all selected keys: give it the selector without an order")
    share = Share(selector, name=f"{name} share" if name else None)
    return Map(share, lambda part: int(1 / part) - 1, name=name)


def _linear(left: Expression, a: Any, right: Any, b: int) -> Linear:
    for number in [a] if isinstance(right, Expression) else [a, right]:
        if not isinstance(number, (int, Fraction)):
            raise TypeError(f"{number!r} is no int or Fraction, with which numerical expressions are exact")
    terms, total = _terms(left, Fraction(a))
    if not isinstance(right, Expression):
        return Linear(terms, total + b * Fraction(right))
    more, rest = _terms(right, Fraction(b))
    return Linear((*terms, *more), total + rest)


def _terms(expression: Expression, factor: Fraction) -> tuple[tuple[tuple[Expression, Fraction], ...], Fraction]:
    """`factor` times an expression as terms and a constant; an unnamed sum dissolves into its own terms."""
    if isinstance(expression, Linear) and expression.name is None:
        return tuple((term, factor * own) for term, own in expression.terms), factor * expression.constant
    return ((expression, factor),), Fraction(0)
