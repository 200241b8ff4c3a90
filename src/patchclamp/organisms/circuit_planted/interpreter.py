"""A program on many inputs at once, with any of its variables exchanged: what `Program.trace` says, as tensors.

    values = evaluate(program, tokens)                              # tokens Int[row, pos], BOS first
    values = evaluate(program, tokens, {"before": origin})          # row r, position p has that of row origin[r, p]
    values = evaluate(program, tokens, {"before.k": origin})        # only the keys that this head compares
    output_ids(program, values)                                     # the network's right answers, [row, pos]

A categorical variable is the index of its value in its domain, -1 where it has none; a numerical one is a number.
"""

import operator
from collections.abc import Callable, Mapping
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
)
from patchclamp.organisms.compiled.program import Program

IGNORED = -100  # the answer where there is none, as torch's cross-entropy has it

Values = dict[str, Tensor]
Origins = Mapping[str, Int[Tensor, "row pos"]]


def exchanged(x: Float[Tensor, "row pos *rest"], origin: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos *rest"]:
    """At each position what the row `origin` says has there."""
    return x[origin.to(x.device), torch.arange(x.shape[1], device=x.device)]


def evaluate(program: Program, tokens: Int[Tensor, "row pos"], origins: Origins | None = None) -> Values:
    """All variables at all positions; those that `origins` names are exchanged between rows, and what reads them
    follows.

    "NAME.q", "NAME.k" and "NAME.v" are what the head of an aggregate NAME reads: the queries and the keys (with the
    order among them) of its selector, its values. ProgramError for other names, for ids that are no tokens of the
    program, and where a categorical aggregate selects several values.
    """
    known = {name + port for name in program.variables for port in ("", ".q", ".k", ".v")}
    if origins and not origins.keys() <= known:
        unknown = ", ".join(sorted(origins.keys() - known))
        raise ProgramError(f"{program.name} has no variable {unknown}. There are: {', '.join(program.variables)}.")
    if bool((tokens[:, 0] != 0).any()) or not 1 <= int(tokens[:, 1:].min()) <= int(tokens.max()) <= len(program.tokens):
        raise ProgramError(f"{program.name} reads BOS, id 0, and tokens of ids 1 to {len(program.tokens)}")
    found: dict[Expression, Tensor] = {}
    for name, expression in program.variables.items():
        values = _values(program, expression, tokens, found, origins or {})
        found[expression] = _exchanged(values, name, origins or {})
    return {name: found[expression] for name, expression in program.variables.items()}


def output_ids(program: Program, values: Values) -> Int[Tensor, "row pos"]:
    """The token that is the program's output at each position, `IGNORED` where it has none."""
    ids = [program.vocabulary.index(value) for value in program.domain(program.output)]
    return torch.tensor([*ids, IGNORED])[values[program.names[program.output]]]


def _values(
    program: Program,
    expression: Expression,
    tokens: Int[Tensor, "row pos"],
    found: Mapping[Expression, Tensor],
    origins: Origins,
) -> Tensor:
    def of(source: Expression, port: str = "") -> Tensor:
        values = torch.zeros_like(tokens) if isinstance(source, Constant) else found[source]
        return _exchanged(values, f"{program.names[expression]}.{port}", origins)

    match expression:
        case Tokens():
            return tokens - 1
        case Indices():
            return torch.arange(-1, tokens.shape[1] - 1).expand_as(tokens)
        case Map(source=source):
            domain = (*program.domain(source), None)
            results = [program._apply(expression, value) for value in domain]
            index = _nearest(program, source, of(source)) if source.numerical else of(source)
            return _table(program, expression, results)[index]
        case Both(left=left, right=right, function=function):
            pairs = [[function(a, b) for b in program.domain(right)] + [None] for a in program.domain(left)]
            pairs.append([None] * len(pairs[0]))
            return torch.stack([_table(program, expression, row) for row in pairs])[of(left), of(right)]
        case Linear(terms=terms, constant=constant):
            return reduce(operator.add, (float(factor) * of(term) for term, factor in terms)) + float(constant)
        case Aggregate(selector=selector, values=source):
            some, values = selected(program, selector, of), of(source, "v")
            return _mean(some, values) if source.numerical else _only(program, expression, some, values)
        case Share(selector=selector):
            return 1 / (1 + selected(program, selector, of).sum(2).double())
    raise TypeError(f"{expression!r} is no expression of the language")


def _table(program: Program, expression: Expression, results: list) -> Tensor:
    """One entry for each of these values of `expression`."""
    if expression.numerical:
        return torch.tensor([float(result) for result in results], dtype=torch.double)
    index = {value: place for place, value in enumerate(program.domain(expression))} | {None: -1}
    return torch.tensor([index[result] for result in results])


def _nearest(program: Program, source: Expression, x: Float[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """Which number of the domain it is, up to rounding."""
    numbers = torch.tensor([float(number) for number in program.domain(source)], dtype=torch.double)
    return torch.bucketize(x, (numbers[1:] + numbers[:-1]) / 2)


def _exchanged(values: Tensor, name: str, origins: Origins) -> Tensor:
    return exchanged(values, origins[name]) if name in origins else values


def selected(program: Program, selector: Selector, of: Callable[..., Tensor]) -> Bool[Tensor, "row query key"]:
    """Which keys each position selects; `of(expression, port)` are the values that it reads."""
    table = program.table(selector)
    queries = program.domain(selector.queries)
    rows = [[table[key, query] for query in queries] + [False] for key in program.domain(selector.keys)]
    holds = torch.tensor([*rows, [False] * len(rows[0])])
    some = holds[of(selector.keys, "k")[:, None, :], of(selector.queries, "q")[:, :, None]]
    places = torch.arange(some.shape[1])
    some = some & (places <= places[:, None]) & (places > 0)
    for by, sign in selector.order:
        values = of(by, "k")
        if bool((some & (values < 0)[:, None]).any()):
            raise ProgramError(f"{program.name}: a head orders by {program.names[by]}, which has no value somewhere")
        rank = program.rank(by)
        worth = sign * torch.tensor([rank[value] for value in program.domain(by)])[values]
        worth = torch.where(some, worth[:, None], -len(rank))
        some = some & (worth == worth.amax(2, keepdim=True))
    return some


def _mean(some: Bool[Tensor, "row query key"], numbers: Float[Tensor, "row key"]) -> Float[Tensor, "row query"]:
    return (some * numbers[:, None]).sum(2) / some.sum(2).clamp_min(1)


def _only(
    program: Program, expression: Expression, some: Bool[Tensor, "row query key"], values: Int[Tensor, "row key"]
) -> Int[Tensor, "row query"]:
    """The one value that is selected, -1 of none."""
    least = torch.where(some, values[:, None], values.max() + 1).amin(2)
    most = torch.where(some, values[:, None], -1).amax(2)
    if bool((some.any(2) & (least != most)).any()):
        raise ProgramError(
            f"{program.name}: {program.names[expression]} selects different values, of which a head would write the "
            "average: choose one with latest, first, greatest or least"
        )
    return most
