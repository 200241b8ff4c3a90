"""The interpreter on batches is held to `Program.trace`, input by input."""

import random

import pytest
import torch

from patchclamp.organisms.circuit_planted.interpreter import IGNORED, evaluate, output_ids
from patchclamp.organisms.circuit_planted.programs import PLANS
from patchclamp.organisms.compiled.language import ProgramError, aggregate, indices, latest, select, tokens
from patchclamp.organisms.compiled.program import Program
from patchclamp.organisms.compiled.programs import PROGRAMS, program

ALL = [plan.program for plan in PLANS.values()] + list(PROGRAMS)


def drawn(one: Program, n: int, seed: int):
    rng = random.Random(seed)
    rows = [one.inputs(rng)[0] for _ in range(n)]
    return rows, torch.tensor([one.ids(row) for row in rows])


def assert_same(one: Program, values, traces):
    for name, expression in one.variables.items():
        for row, trace in enumerate(traces):
            for place, known in enumerate(trace[name]):
                got = values[name][row, place].item()
                if expression.numerical:
                    assert got == pytest.approx(float(known), abs=1e-12)
                else:
                    assert (one.domain(expression)[got] if got >= 0 else None) == known


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_all_variables_are_those_of_the_trace(one):
    rows, ids = drawn(one, 12, seed=1)
    values = evaluate(one, ids)
    traces = [one.trace(row) for row in rows]
    assert_same(one, values, traces)
    known = [[IGNORED if x is None else one.vocabulary.index(x) for x in trace.output] for trace in traces]
    assert output_ids(one, values).tolist() == known


@pytest.mark.parametrize("name", PLANS)
def test_exchanged_variables_are_replaced_in_the_trace(name):
    one = PLANS[name].program
    rows, ids = drawn(one, 12, seed=2)
    clean = [one.trace(row) for row in rows]
    generator = torch.Generator().manual_seed(3)
    changed = 0
    for variable in list(one.variables)[1:]:
        origin = torch.randint(12, ids.shape, generator=generator)
        put = [[clean[r][variable][p] for p, r in enumerate(row)] for row in origin.tolist()]
        traces = [one.trace(row, do={variable: new}) for row, new in zip(rows, put, strict=True)]
        assert_same(one, evaluate(one, ids, {variable: origin}), traces)
        changed += sum(trace.output != before.output for trace, before in zip(traces, clean, strict=True))
    assert changed > 20


def test_ports_are_exchanged_alone():
    one = program("induction")  # what followed this token the last time
    ids = torch.tensor([one.ids("abcab"), one.ids("bbbbb")])
    other = torch.tensor([[1] * 6, [1] * 6])
    shown = [one.vocabulary[i] for i in output_ids(one, evaluate(one, ids))[:, -1]]
    assert shown == ["c", "b"]
    for port, known in (("q", "c"), ("k", "b"), ("v", "b")):
        # "ab" was asked for with "b" in both; behind any "b" in the other's keys is position 5, whose own token is "b"
        found = output_ids(one, evaluate(one, ids, {f"prediction.{port}": other}))[0, -1]
        assert one.vocabulary[found] == known, port


def test_several_values_are_refused():
    every = select(tokens, tokens, lambda key, query: True)
    one = Program("several", aggregate(every, tokens, name="mixture"), ("a", "b"), 4)
    assert evaluate(one, torch.tensor([one.ids("aaa")]))["mixture"].tolist() == [[-1, 0, 0, 0]]
    with pytest.raises(ProgramError, match="mixture selects different values"):
        evaluate(one, torch.tensor([one.ids("aab")]))
    before = aggregate(select(indices, indices, lambda key, query: key == query - 1), indices, name="before")
    head = aggregate(latest(select(tokens, tokens)), tokens, name="same")
    assert evaluate(Program("none", head, ("a",), 3), torch.tensor([[0, 1, 1]]))["same"].tolist() == [[-1, 0, 0]]
    assert evaluate(Program("first", before, ("a",), 3), torch.tensor([[0, 1, 1]]))["before"].tolist() == [[-1, -1, 0]]


def test_unknown_variables_and_tokens_are_refused():
    one = PLANS["planted-circuit:pointer"].program
    ids = drawn(one, 2, seed=0)[1]
    with pytest.raises(ProgramError, match=r"pointer has no variable lettre\. There are: indices, tokens, first digit"):
        evaluate(one, ids, {"lettre": ids})
    for wrong in (ids.flip(1), ids.clamp_min(1), ids + torch.tensor([0] * 9 + [90])):
        with pytest.raises(ProgramError, match="pointer reads BOS, id 0, and tokens of ids 1 to 12"):
            evaluate(one, wrong)
