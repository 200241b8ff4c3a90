"""A program: an expression with an alphabet and a length. Its interpreter is what a compiled network is held to.

program = Program("previous", aggregate(select(indices, indices, lambda k, q: k == q - 1), tokens, name="before"),
                  tokens=("a", "b"), length=8)
program.evaluate(["a", "b", "b"])                          # (None, "a", "b"): the output at each token
trace = program.trace(["a", "b", "b"])                     # every variable at every position, BOS at 0
trace["before"][2]                                         # "a"
program.trace(["a", "b", "b"], do={"before": {3: "a"}})    # again, with a value put in by hand
"""

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

from patchclamp.organisms.compiled.language import (
    Aggregate,
    Both,
    Constant,
    Expression,
    Indices,
    Linear,
    Map,
    ProgramError,
    Selector,
    Share,
    Tokens,
    Value,
)

BOS = "<bos>"
_MOST = 20_000  # values of a numerical expression that a map of it may have to tell apart
_TRIES = 10_000  # draws before an input with an answer, or with another answer, is given up


@dataclass(frozen=True)
class Trace:
    """Every variable's values on one input: `trace[name][position]`, where position 0 is BOS as in the network."""

    tokens: tuple[Value, ...]
    values: Mapping[str, tuple[Value, ...]]
    output: tuple[Value, ...]

    def __getitem__(self, name: str) -> tuple[Value, ...]:
        if name not in self.values:
            raise KeyError(f"no variable is called {name!r}. There are: {', '.join(self.values)}.")
        return self.values[name]


@dataclass(frozen=True, eq=False)
class Program:
    """What `output` says of sequences of up to `length` of these `tokens`.

    `draw(rng, n)` makes a valid input of n tokens, at least `shortest` (by default, tokens drawn evenly). The answer
    to an input is the output at its last token. A value is a token of the network, so `vocabulary` is BOS, the tokens,
    and then the values of the output that are not among them; a token's id is its place there.
    """

    name: str
    output: Expression
    tokens: tuple[Value, ...]
    length: int
    draw: Callable[[random.Random, int], Sequence[Value]] | None = field(default=None, repr=False)
    shortest: int = 1
    summary: str = ""

    def __post_init__(self) -> None:
        if len(set(self.tokens)) < len(self.tokens) or BOS in self.tokens or None in self.tokens or not self.tokens:
            raise ProgramError(f"{self.name}: tokens are different values, without {BOS!r} and None: {self.tokens}")
        if not 1 <= self.shortest <= self.length:
            raise ProgramError(f"{self.name}: inputs have {self.shortest} to {self.length} tokens, which is no range")
        if self.output.numerical:
            raise ProgramError(f"{self.name}: the output is numerical; map it to the tokens that are to be written")

    # ── what it consists of ───────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def variables(self) -> dict[str, Expression]:
        """Its expressions by name, each after what it reads; constants have no name. Unnamed ones are "map 1", ..."""
        order: dict[int, Expression] = {}

        def visit(expression: Expression) -> None:
            if id(expression) not in order:
                for source in expression.inputs:
                    visit(source)
                order[id(expression)] = expression

        visit(self.output)
        found: dict[str, Expression] = {}
        for expression in order.values():
            if isinstance(expression, Constant):
                continue
            kind = type(expression).__name__.lower()
            alike = sum(type(other) is type(expression) and other.name is None for other in found.values())
            name = expression.name or f"{kind} {alike + 1}"
            if name in found:
                raise ProgramError(f"{self.name}: two expressions are called {name!r}; names tell variables apart")
            found[name] = expression
        return found

    @cached_property
    def names(self) -> Mapping[Expression, str]:
        """The name of each variable; "constant" for what is none."""
        return _Names({expression: name for name, expression in self.variables.items()})

    @cached_property
    def vocabulary(self) -> tuple[Value, ...]:
        """The network's tokens in the order of their ids: BOS, the tokens, and output values that are none of them."""
        more = (value for value in self.domain(self.output) if value not in self.tokens)
        return (BOS, *self.tokens, *more)

    def domain(self, expression: Expression) -> tuple[Any, ...]:
        """The values that an expression may have, None apart; of a numerical one all numbers, ascending."""
        if expression not in self._domains:
            self._domains[expression] = self._domain(expression)
        return self._domains[expression]

    def table(self, selector: Selector) -> Mapping[tuple[Value, Value], bool]:
        """Whether the predicate holds, by (key, query)."""
        if id(selector) not in self._tables:
            where = f"select({self.names[selector.keys]}, {self.names[selector.queries]})"
            for by, part in (
                (selector.keys, "keys"),
                (selector.queries, "queries"),
                *((by, "order") for by, _ in selector.order),
            ):
                if by.numerical:
                    raise ProgramError(
                        f"{self.name}: the {part} of {where} are numerical ({self.names[by]}); map them to categories"
                    )
            self._tables[id(selector)] = {
                (key, query): bool(self._call(selector.predicate, where, key, query))
                for key in self.domain(selector.keys)
                for query in self.domain(selector.queries)
            }
        return self._tables[id(selector)]

    def rank(self, by: Expression) -> Mapping[Value, int]:
        """The place of each value in the ascending order of its domain."""
        try:
            return {value: place for place, value in enumerate(sorted(self.domain(by)))}
        except TypeError as error:
            raise ProgramError(f"{self.name}: values of {self.names[by]} have no order: {error}") from error

    @cached_property
    def _domains(self) -> dict[Expression, tuple[Any, ...]]:
        return {}

    @cached_property
    def _tables(self) -> dict[int, Mapping[tuple[Value, Value], bool]]:
        return {}

    def _call(self, function: Callable[..., Any], name: str, *values: Any) -> Any:
        try:
            result = function(*values)
        except Exception as error:
            shown = ", ".join(map(repr, values))
            raise ProgramError(
                f"{self.name}: {name} has no result for {shown}, a value it may get: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(result, Hashable):
            raise ProgramError(f"{self.name}: {name} gives {result!r}, which is no value: it cannot be hashed")
        return result

    def _apply(self, expression: Map, value: Any) -> Any:
        result = expression.missing if value is None else self._call(expression.function, self.names[expression], value)
        if not expression.number:
            return result
        if not isinstance(result, (int, float, Fraction)):
            raise ProgramError(
                f"{self.name}: {self.names[expression]} is numerical, but gives {result!r} for {value!r}"
            )
        return Fraction(result)

    def _domain(self, expression: Expression) -> tuple[Any, ...]:
        match expression:
            case Tokens():
                return self.tokens
            case Indices():
                return tuple(range(1, self.length + 1))
            case Constant(value=value):
                return (value,)
            case Map(source=source):
                values = [self._apply(expression, value) for value in (*self.domain(source), None)]
            case Both(left=left, right=right, function=function):
                name = self.names[expression]
                if any(isinstance(one, Constant) or one.numerical for one in (left, right)):
                    raise ProgramError(f"{self.name}: both ({name}) takes two categorical variables; use map for one")
                pairs = [(a, b) for a in self.domain(left) for b in self.domain(right)]
                values = [self._call(function, name, a, b) for a, b in pairs]
            case Aggregate(values=source):
                values = self.domain(source) if not source.numerical else self._means(expression, source)
            case Share():
                values = [Fraction(1, 1 + count) for count in range(self.length + 1)]
            case Linear(terms=terms, constant=constant):
                values = {constant}
                for term, factor in terms:
                    if not term.numerical:
                        raise ProgramError(f"{self.name}: {self.names[term]} is categorical and cannot be added")
                    values = self._few({total + factor * x for total in values for x in self.domain(term)}, expression)
            case _:
                raise TypeError(f"{expression!r} is no expression of the language")
        if expression.numerical:
            return tuple(sorted(set(values)))
        found = dict.fromkeys(value for value in values if value is not None)
        return tuple(sorted(found) if all(isinstance(value, int) for value in found) else found)

    def _means(self, expression: Expression, source: Expression) -> set[Fraction]:
        own, sums, means = set(self.domain(source)), {Fraction(0)}, {Fraction(0)}
        for count in range(1, self.length + 1):
            sums = self._few({total + x for total in sums for x in own}, expression)
            means |= {total / count for total in sums}
        return self._few(means, expression)

    def _few(self, values: set[Fraction], expression: Expression) -> set[Fraction]:
        if len(values) > _MOST:
            raise ProgramError(f"{self.name}: {self.names[expression]} may be one of more than {_MOST:,} numbers")
        return values

    # ── what it says ──────────────────────────────────────────────────────────────────────────────────────────────

    def evaluate(self, tokens: Sequence[Value]) -> tuple[Value, ...]:
        """The output at each token; None where it has no value.

        ProgramError where the input is too long, holds something that is no token, or makes a categorical aggregate
        select several values.
        """
        return self.trace(tokens).output[1:]

    def trace(
        self,
        tokens: Sequence[Value],
        *,
        do: Mapping[str, "Mapping[int, Value] | Sequence[Value]"] | None = None,
    ) -> Trace:
        """All variables on one input. `do` replaces values of variables, and what reads them follows: `{position:
        value}`, or the values at all positions, such as another trace's: `do={"before": other["before"]}`.
        """
        row = self._checked(tokens)
        found: dict[Expression, list[Any]] = {}
        for name, put in (do or {}).items():
            if name not in self.variables:
                raise ProgramError(f"{self.name} has no variable {name!r}. There are: {', '.join(self.variables)}.")
            self._check_put(name, put, len(row))
        for name, expression in self.variables.items():
            values = self._values(expression, row, found)
            put = (do or {}).get(name, {})
            for position, value in put.items() if isinstance(put, Mapping) else enumerate(put):
                values[position] = value
            found[expression] = values
        output = found.get(self.output) or self._values(self.output, row, found)
        by_name = {name: tuple(found[expression]) for name, expression in self.variables.items()}
        return Trace(row, by_name, tuple(output))

    def ids(self, tokens: Sequence[Value]) -> list[int]:
        """The network's input: BOS and the tokens, as ids."""
        return [self.vocabulary.index(token) for token in self._checked(tokens)]

    def _checked(self, tokens: Sequence[Value]) -> tuple[Value, ...]:
        for place, token in enumerate(tokens, start=1):
            if token not in self.tokens:
                known = " ".join(map(str, self.tokens))
                raise ProgramError(f"{self.name}: {token!r} at position {place} is no token. There are: {known}")
        if not 1 <= len(tokens) <= self.length:
            raise ProgramError(f"{self.name} reads 1 to {self.length} tokens; these are {len(tokens)}")
        return (BOS, *tokens)

    def _check_put(self, name: str, put: Any, length: int) -> None:
        expression = self.variables[name]
        if not isinstance(put, Mapping) and len(put) != length:
            raise ProgramError(f"{self.name}: {len(put)} values of {name!r} for {length} positions, BOS included")
        for position, value in put.items() if isinstance(put, Mapping) else enumerate(put):
            if not 0 <= position < length:
                raise ProgramError(f"{self.name}: position {position} of {name!r}, but the last is {length - 1}")
            if value is not None and not expression.numerical and value not in self.domain(expression):
                raise ProgramError(f"{self.name}: {name!r} is never {value!r}. It is one of {self.domain(expression)}")

    def _values(self, expression: Expression, row: tuple[Value, ...], found: Mapping[Expression, list[Any]]) -> list:
        """An expression's values, given those of what it reads."""

        def of(source: Expression) -> list[Any]:
            return [source.value] * len(row) if isinstance(source, Constant) else found[source]

        match expression:
            case Tokens():
                return [None, *row[1:]]
            case Indices():
                return [None, *range(1, len(row))]
            case Constant():
                return of(expression)
            case Map(source=source):
                return [self._apply(expression, value) for value in of(source)]
            case Both(left=left, right=right, function=function):
                name, pairs = self.names[expression], zip(of(left), of(right), strict=True)
                return [None if None in pair else self._call(function, name, *pair) for pair in pairs]
            case Linear(terms=terms, constant=constant):
                columns = zip(*(of(term) for term, _ in terms), strict=True)
                return [constant + sum(c * x for (_, c), x in zip(terms, xs, strict=True)) for xs in columns]
            case Aggregate(selector=selector, values=source):
                chosen = self.selected(selector, of)
                return [self._aggregated(expression, of(source), some, place) for place, some in enumerate(chosen)]
            case Share(selector=selector):
                return [Fraction(1, 1 + len(some)) for some in self.selected(selector, of)]
        raise TypeError(f"{expression!r} is no expression of the language")

    def selected(self, selector: Selector, of: Callable[[Expression], Sequence[Value]]) -> list[list[int]]:
        """The positions that each position selects, given the values of expressions."""
        table, keys, queries = self.table(selector), of(selector.keys), of(selector.queries)
        chosen = []
        for query in range(len(keys)):
            some = [key for key in range(1, query + 1) if table.get((keys[key], queries[query]), False)]
            for by, sign in selector.order:
                if some:
                    ranks, values = self.rank(by), of(by)
                    if any(values[key] is None for key in some):
                        raise ProgramError(
                            f"{self.name}: the head that selects {self.names[selector.keys]} orders by "
                            f"{self.names[by]}, which has no value at one of the positions {some}"
                        )
                    places = {key: sign * ranks[values[key]] for key in some}
                    some = [key for key in some if places[key] == max(places.values())]
            chosen.append(some)
        return chosen

    def _aggregated(self, expression: Aggregate, values: Sequence[Any], some: list[int], place: int) -> Any:
        picked = [values[key] for key in some]
        if expression.numerical:
            return sum(picked, Fraction(0)) / max(1, len(picked))
        if len(set(picked)) > 1:
            raise ProgramError(
                f"{self.name}: {self.names[expression]} selects different values of {self.names[expression.values]} at "
                f"position {place}: {', '.join(f'{values[key]!r} at {key}' for key in some)}. A head would write their "
                "average, which is none of them: choose one with latest, first, greatest or least."
            )
        return picked[0] if picked else None

    # ── inputs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def inputs(self, rng: random.Random, n: int | None = None) -> tuple[tuple[Value, ...], Value]:
        """An input of `n` tokens (by default as long as can be) that has an answer, and its answer."""
        n = self.length if n is None else n
        if not self.shortest <= n <= self.length:
            raise ProgramError(f"{self.name} has inputs of {self.shortest} to {self.length} tokens, not {n}")
        for _ in range(_TRIES):
            row = tuple(self.draw(rng, n) if self.draw else rng.choices(self.tokens, k=n))
            answer = self.evaluate(row)[-1]
            if answer is not None:
                return row, answer
        raise ProgramError(f"{self.name}: none of {_TRIES:,} inputs of {n} tokens has an answer at its last token")

    def pair(
        self, rng: random.Random, n: int | None = None
    ) -> tuple[tuple[Value, ...], tuple[Value, ...], Value, Value]:
        """An input, another of the same length with another answer, and the two answers."""
        clean, answer = self.inputs(rng, n)
        for _ in range(_TRIES):
            corrupt, wrong = self.inputs(rng, n)
            if wrong != answer:
                return clean, corrupt, answer, wrong
        raise ProgramError(f"{self.name}: {_TRIES:,} inputs of {len(clean)} tokens have the answer {answer!r}")


class _Names(dict[Expression, str]):
    def __missing__(self, expression: Expression) -> str:
        return f"constant {expression.value!r}" if isinstance(expression, Constant) else type(expression).__name__
