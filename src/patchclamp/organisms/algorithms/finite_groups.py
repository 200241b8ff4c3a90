"""Finite groups from scratch: `group("s4").table[a, b]` is the product, `irreps(group("s4"))` the characters.

Names: `c30` cyclic, `d12` dihedral (the 24 symmetries of a 12-gon), `s4` all permutations, `a5` the even ones.

    measured = character_shares(table, group("s4"))       # table[a, b, c]: the logit of c after (a, b)

The irreps are found numerically, with no table of characters and for any group: a function that is constant on
conjugacy classes acts on each irrep's part of the regular representation as one number, so its eigenspaces are those
parts. Only real functions are used, in which an irrep and its complex conjugate have one part together (`Irrep.pair`).
"""

import math
import re
from dataclasses import dataclass, field
from itertools import permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """A group of permutations: its elements (0 is the identity), and the number of each product and inverse."""

    name: str
    elements: tuple[Permutation, ...]
    table: Int[Tensor, "n n"] = field(repr=False)
    inverse: Int[Tensor, "n"] = field(repr=False)

    def __len__(self) -> int:
        return len(self.elements)


@dataclass(frozen=True)
class Irrep:
    """An irreducible representation: its dimension over the complex numbers and its character by element.

    `pair`: it and its complex conjugate, which real functions cannot tell apart; `character` is then their sum.
    Names are the dimension and a letter: "1a" is the trivial one.
    """

    name: str
    dimension: int
    pair: bool
    character: Float[Tensor, "n"] = field(repr=False)


def group(name: str) -> Group:
    """The group called `name`; ValueError where the name is none.

    >>> len(group("d12")), len(group("s4")), len(group("a5"))
    (24, 24, 60)
    """
    match = re.fullmatch(r"([cdsa])(\d+)", name)
    if match is None or int(match[2]) < (3 if match[1] in "da" else 1):
        raise ValueError(
            f"no group is called {name!r}: there are cN, dN (2N elements, N >= 3), sN, aN (N >= 3), as in 's4'"
        )
    n = int(match[2])
    rotations = [tuple((i + turn) % n for i in range(n)) for turn in range(n)]
    match match[1]:
        case "c":
            elements = rotations
        case "d":
            elements = rotations + [tuple((turn - i) % n for i in range(n)) for turn in range(n)]
        case "s":
            elements = list(permutations(range(n)))
        case _:
            elements = [element for element in permutations(range(n)) if _even(element)]
    number = {element: index for index, element in enumerate(elements)}
    table = torch.tensor([[number[tuple(a[i] for i in b)] for b in elements] for a in elements])
    return Group(name, tuple(elements), table, (table == 0).int().argmax(1))


def irreps(g: Group) -> list[Irrep]:
    """All irreps, by dimension; the trivial one first. The squares of the dimensions (twice for a pair) sum to |G|."""
    n = len(g)
    generator = torch.Generator().manual_seed(0)
    # Averaged over conjugation and inversion: constant on classes, symmetric as a matrix.
    drawn = torch.rand(n, dtype=torch.double, generator=generator)
    conjugates = g.table[g.table, g.inverse[:, None]]  # [a, x]: a x a^-1
    drawn = drawn[conjugates].mean(0)
    drawn = (drawn + drawn[g.inverse]) / 2
    values, vectors = torch.linalg.eigh(drawn[g.table[torch.arange(n)[:, None], g.inverse]])  # [x, y]: f(x y^-1)
    found = []
    start = 0
    for end in range(1, n + 1):
        if end < n and values[end] - values[end - 1] < 1e-8:
            continue
        part = vectors[:, start:end]
        rank = end - start
        pair = math.isqrt(rank) ** 2 != rank
        dimension = math.isqrt(rank // 2 if pair else rank)
        # The projector is convolution with dimension / n times the character: read it off beside the identity.
        found.append((dimension, pair, part @ part[0] * n / dimension))
        start = end
    found.sort(key=lambda irrep: (irrep[0], irrep[1], [-round(float(x), 6) for x in irrep[2]]))
    counts: dict[int, int] = {}
    named = []
    for dimension, pair, character in found:
        index = counts[dimension] = counts.get(dimension, -1) + 1
        named.append(Irrep(f"{dimension}{_letters(index)}", dimension, pair, character))
    return named


def projector(irrep: Irrep, g: Group) -> Float[Tensor, "n n"]:
    """Onto the functions on the group that are sums of the irrep's matrix entries: an orthogonal projection."""
    return irrep.character[g.table[torch.arange(len(g))[:, None], g.inverse]] * irrep.dimension / len(g)


def span_shares(rows: Float[Tensor, "n d"], g: Group) -> dict[str, float]:
    """The share of the square of a matrix with a row for each element that each irrep's span has; they sum to 1."""
    rows = rows.double()
    total = rows.square().sum()
    return {irrep.name: float((projector(irrep, g) @ rows).square().sum() / total) for irrep in irreps(g)}


def character_shares(table: Float[Tensor, "n n n"], g: Group) -> dict[str, float]:
    """For each irrep, the share of the logits' variance along the one function character(a b c^-1).

    `table[a, b, c]` is the logit of c, taken less its mean over c. The functions are orthogonal: shares add up
    (Chughtai et al. 2023, arXiv:2302.03025).
    """
    n = len(g)
    centred = table.double() - table.double().mean(-1, keepdim=True)
    quotient = g.table[g.table[:, :, None], g.inverse]  # [a, b, c]: a b c^-1
    by_quotient = torch.zeros(n, dtype=torch.double).index_add_(0, quotient.flatten(), centred.flatten())
    total = centred.square().sum()
    return {
        irrep.name: float((irrep.character @ by_quotient) ** 2 / (n**2 * irrep.character.square().sum()) / total)
        for irrep in irreps(g)
    }


def _even(permutation: Permutation) -> bool:
    n = len(permutation)
    return sum(permutation[i] > permutation[j] for i in range(n) for j in range(i + 1, n)) % 2 == 0


def _letters(index: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[index % 26] * (index // 26 + 1)
