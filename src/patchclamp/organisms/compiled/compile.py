"""From a program to the weights of a standard GPT-2, and the circuit that they are.

    model = pc.organisms.compile(program)                       # compression="rotate" or "superpose"
    model.run([program.ids(["a", "b", "a"])]).logits[0, -1].argmax()
    model.truth.edges, model.truth.alignment                    # who reads whom; which component holds which variable
    model.task(64, seed=0)                                      # clean and corrupted inputs, for pc.patching

Each variable has one home: `tokens` the embedding, `indices` the position embedding, an aggregate or a share one head,
a map one MLP; and a subspace of its own in the residual stream. Each is computed as early as what it reads allows.
Layer norms are the identity: with an eps of 1e8 they divide by a constant, which their gain undoes, and the mean that
they subtract is zero because every direction that is written sums to zero. Scores are so far apart (`NATS`) that the
softmax is exact in single precision. A head that finds nothing attends to BOS, from which it reads zero.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GPT2LMHeadModel

from patchclamp.model import Model
from patchclamp.organisms.compiled.edges import used
from patchclamp.organisms.compiled.language import Expression, Value
from patchclamp.organisms.compiled.layout import Layout, lay_out
from patchclamp.organisms.compiled.program import Program
from patchclamp.organisms.compiled.weights import MARGIN as MARGIN
from patchclamp.organisms.compiled.weights import NATS as NATS
from patchclamp.organisms.compiled.weights import Edges, write
from patchclamp.organisms.truth import Truth
from patchclamp.tasks.task import Task

Compression = Literal["rotate", "superpose"]
SUFFIX: dict[Compression | None, str] = {None: "", "rotate": "+rotated", "superpose": "+superposed"}
_WITNESSES = 128  # inputs on at least one of which an edge of the circuit must matter


@dataclass(frozen=True)
class CompiledTruth(Truth):
    """What is true of a compiled program, exactly.

    `edges` are those that were written, less those on which no answer ever depends. These are the embedding's to a head
    that would rest at BOS where it finds nothing, and always finds something; or would leave BOS out of a mean of which
    only the sign is used. The circuit is that of answers at the last position of inputs of full length.
    `features["tokens=a"]` is the direction of a value in the residual stream, `features["fraction"]` that of a number.
    `packing` says how many values share how many dimensions, by categorical variable; `unpacked` why a variable of a
    superposed network stayed orthogonal.
    """

    program: Program | None = None
    packing: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unpacked: Mapping[str, str] = field(default_factory=dict)

    @property
    def packing_ratio(self) -> float:
        """Values of categorical variables for each dimension that they have together; 1 where all are orthogonal."""
        values, dims = (sum(column) for column in zip(*self.packing.values(), strict=True))
        return values / dims


class CompiledModel(Model):
    """A `Model` that knows its program and its `truth`."""

    def __init__(self, hf: GPT2LMHeadModel, program: Program, truth: CompiledTruth):
        super().__init__(hf, name=f"organism:{truth.name}")
        self.program, self.truth = program, truth

    def task(self, n: int = 64, seed: int = 0, length: int | None = None) -> Task:
        """`n` inputs of `length` tokens (by default as long as can be) with their answers at the last position.

        Corrupted: another valid input of the same length with another answer.
        """
        rng, program = random.Random(seed), self.program
        rows = [program.pair(rng, length) for _ in range(n)]
        clean, corrupt, answers, wrong = zip(*rows, strict=True)
        ids = program.vocabulary.index
        return Task.from_tokens(
            clean=[program.ids(row) for row in clean],
            corrupt=[program.ids(row) for row in corrupt],
            answers=[ids(answer) for answer in answers],
            wrong=[ids(answer) for answer in wrong],
            name=self.truth.name,
        )


def compile(
    program: Program | Expression,
    *,
    vocabulary: tuple[Value, ...] | None = None,
    length: int | None = None,
    compression: Compression | None = None,
    seed: int = 0,
) -> CompiledModel:
    """The program as a GPT-2 whose most probable token is the program's output, at every position where it has one.

    `program` is a Program (whose alphabet and length `vocabulary` and `length` replace) or its output expression, which
    needs both. `compression="rotate"` turns the residual stream by a random rotation; "superpose" also gives
    categorical variables fewer dimensions than values, where that stays exact. `seed` decides both.
    ProgramError where the program has no meaning, or selects several values on one of the inputs that are tried.
    """
    program = _program(program, vocabulary, length)
    if compression not in SUFFIX:
        raise ValueError(f"compression={compression!r}: it is None, 'rotate' or 'superpose'")
    inputs = _tried(program, seed)
    layout = lay_out(program, rotate=compression is not None, superpose=compression == "superpose", seed=seed)
    hf, edges = write(program, layout)
    model = CompiledModel(hf, program, _truth(program, layout, SUFFIX[compression], edges))
    model.truth = replace(model.truth, edges=used(model, inputs, edges))
    return model


def _program(program: Program | Expression, vocabulary: tuple[Value, ...] | None, length: int | None) -> Program:
    if isinstance(program, Program):
        tokens, most = vocabulary or program.tokens, length or program.length
        return replace(program, tokens=tuple(tokens), length=most)
    if vocabulary is None or length is None:
        raise TypeError("an expression by itself needs its alphabet and its length: compile(e, vocabulary=, length=)")
    return Program(program.name or "program", program, tokens=tuple(vocabulary), length=length)


def _tried(program: Program, seed: int) -> Int[Tensor, "prompt pos"]:
    """Inputs of the full length; drawing them also shows whether the program has a meaning there."""
    rng = random.Random(seed)
    return torch.tensor([program.ids(program.inputs(rng)[0]) for _ in range(_WITNESSES)])


def _sampler(program: Program):
    def sample(n: int, seed: int) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt"]]:
        rng = random.Random(seed)
        rows = [program.inputs(rng) for _ in range(n)]
        answers = [program.vocabulary.index(answer) for _, answer in rows]
        return torch.tensor([program.ids(row) for row, _ in rows]), torch.tensor(answers)

    return sample


def _truth(program: Program, layout: Layout, suffix: str, edges: Edges) -> CompiledTruth:
    features: dict[str, Tensor] = {}
    packed: dict[str, tuple[int, int]] = {}
    for name, expression in program.variables.items():
        place = layout.places[expression]
        directions = (place.code @ layout.write[place.dims]).float()
        if expression.numerical:
            features[name] = directions[0]
            continue
        packed[name] = (len(place.code), place.code.shape[1])
        features |= {f"{name}={v}": d for v, d in zip(program.domain(expression), directions, strict=True)}
    return CompiledTruth(
        name=f"compiled:{program.name}{suffix}",
        nodes=frozenset(site for site in layout.homes.values() if site.kind in ("z", "mlp_out")),
        edges=frozenset(edges),
        alignment=layout.homes,
        features=features,
        sampler=_sampler(program),
        program=program,
        packing=packed,
        unpacked={program.names[expression]: why for expression, why in layout.unpacked.items()},
    )
