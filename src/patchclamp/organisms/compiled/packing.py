"""Which categorical variables can share dimensions among their values, and the vectors that stand for the values.

    groups, kept = packing(program)        # groups that must have one code, and why the other variables stay orthogonal
    code(12, seed=0)                       # 12 unit vectors in 3 dimensions, no two of a cosine above `WORST`

A reader with a threshold (a neuron, the unembedding) or a comparison for equality (a head) does not mind that the
vectors of other values point in part in the same direction. Any other predicate of a selector, and any order, is a
linear function of the value that only orthogonal vectors have in general.
"""

from collections.abc import Mapping
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.organisms.compiled.language import Aggregate, Constant, Expression, Selector, Share
from patchclamp.organisms.compiled.program import Program

WORST = 0.55  # the greatest cosine of two values of one variable
_KISSING = (0, 2, 6, 12, 24, 40, 72, 126, 240)  # how many vectors with cosines up to a half there are, by dimensions
_STEPS = 300


def packing(program: Program) -> tuple[tuple[tuple[Expression, ...], ...], Mapping[Expression, str]]:
    """Groups of variables that share one code, and of those that cannot be packed, why.

    Variables share a code when a head compares them or moves one to the other.
    """
    parent: dict[Expression, Expression] = {}
    kept: dict[Expression, str] = {}

    def root(expression: Expression) -> Expression:
        while parent.setdefault(expression, expression) is not expression:
            expression = parent[expression]
        return expression

    for expression in program.variables.values():
        if isinstance(expression, Aggregate) and not expression.numerical:
            parent[root(expression)] = root(expression.values)
        if isinstance(expression, Aggregate | Share):
            selector = expression.selector
            if is_equality(program, selector):
                parent[root(selector.keys)] = root(selector.queries)
            else:
                for side in (selector.keys, selector.queries):
                    kept[side] = f"a head ({program.names[expression]}) compares it by more than equality"
            for by, _ in selector.order:
                kept[by] = f"a head ({program.names[expression]}) orders by it"
    for expression in program.variables.values():
        root(expression)
    groups: dict[Expression, list[Expression]] = {}
    for expression in parent:
        if not expression.numerical:
            groups.setdefault(root(expression), []).append(expression)
    packed, left = [], {}
    for group in groups.values():
        bad = next((kept[member] for member in group if member in kept), None)
        if bad is None:
            packed.append(tuple(group))
        else:
            left |= {member: bad for member in group if not isinstance(member, Constant)}
    return tuple(packed), left


def is_equality(program: Program, selector: Selector) -> bool:
    """Whether the selector's predicate is that key and query are the same value."""
    return all(holds == (key == query) for (key, query), holds in program.table(selector).items())


@cache
def code(values: int, seed: int) -> Float[Tensor, "value d"]:
    """Unit vectors for `values` values, in the fewest dimensions in which descent finds no two closer than `WORST`."""
    if values == 1:
        return torch.ones(1, 1, dtype=torch.double)
    least = next((dims for dims, most in enumerate(_KISSING) if most >= values), len(_KISSING))
    for dims in range(least, values):
        found = _spread(values, dims, seed)
        if overlap(found) <= WORST:
            return found
    return torch.eye(values, dtype=torch.double)


def overlap(vectors: Float[Tensor, "value d"]) -> float:
    """The greatest dot product of two different vectors, or 0 where all are negative (or there is one)."""
    gram = vectors @ vectors.T
    return max(0.0, float(gram.fill_diagonal_(-1.0).max()))


def _spread(values: int, dims: int, seed: int) -> Float[Tensor, "value d"]:
    """Vectors that repel each other: descent on the smooth maximum of their cosines, ever less smooth."""
    if dims == 1:
        return torch.ones(values, 1, dtype=torch.double) * torch.tensor([1.0, -1.0])[torch.arange(values) % 2, None]
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(values, dims, generator=generator, dtype=torch.double)
    vectors = torch.nn.functional.normalize(start, dim=-1).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    apart = ~torch.eye(values, dtype=torch.bool)
    for step in range(_STEPS):
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        sharpness = 5 * 20 ** (step / _STEPS)
        loss = torch.logsumexp(sharpness * (unit @ unit.T)[apart], 0) / sharpness
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.nn.functional.normalize(vectors.detach(), dim=-1)
