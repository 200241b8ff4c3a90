"""Programs as data: names, domains, traces, interventions on the interpreter, and errors that say what and where."""

import operator
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.organisms.compiled.language import (
    ProgramError,
    aggregate,
    both,
    constant,
    first,
    indices,
    latest,
    select,
    selector_width,
    tokens,
)
from patchclamp.organisms.compiled.program import BOS, Program
from patchclamp.organisms.compiled.programs import program

LETTERS = ("a", "b", "c")
before = aggregate(select(indices, indices, lambda k, q: k == q - 1), tokens, name="before")


def of(output, **changes):
    return Program("test", output, **{"tokens": LETTERS, "length": 6} | changes)


def test_a_trace_is_by_the_networks_positions():
    trace = of(before).trace("abc")
    assert trace.tokens == (BOS, "a", "b", "c")
    assert trace["tokens"] == (None, "a", "b", "c") and trace["indices"] == (None, 1, 2, 3)
    assert trace["before"] == (None, None, "a", "b") == trace.output
    assert of(before).evaluate("abc") == (None, "a", "b")


def test_unnamed_variables_are_numbered_and_constants_are_none():
    doubled = tokens.map(str.upper).map(str.lower)
    found = of(aggregate(latest(select(doubled, constant("a"))), indices))
    assert list(found.variables) == ["tokens", "map 1", "map 2", "indices", "aggregate 1"]


def test_ids_and_vocabulary():
    count = selector_width(select(tokens, tokens)).map(str)
    assert of(count).vocabulary == (BOS, "a", "b", "c", "0", "1", "2", "3", "4", "5", "6")
    assert of(count).ids("ca") == [0, 3, 1]


def test_a_value_put_in_by_hand_is_what_the_rest_of_the_program_reads():
    found = program("induction")
    row = "abcadb"
    assert found.evaluate(row)[-1] == "c"
    trace = found.trace(row, do={"before": {4: "b"}})  # as if "b" stood in front of the second "a"
    assert trace["before"][4] == "b" and trace.output[-1] == "a"
    assert found.trace(row).output[-1] == "c"


def test_all_values_of_a_variable_can_be_taken_from_another_input():
    found = program("histogram")
    base, source = found.trace("aabb"), found.trace("abca")
    swapped = found.trace("aabb", do={"count": source["count"]})
    assert swapped.output == source.output and base.output != source.output
    assert found.trace("aabb", do={"count": base["count"]}).output == base.output


def test_means_shares_and_sums_are_exact():
    everything = select(tokens, tokens, lambda k, q: True)
    share_a = aggregate(everything, tokens.numbers({"a": 1, "b": 0, "c": 0}), name="share of a")
    share_b = aggregate(everything, tokens.numbers(lambda t: t == "b"), name="share of b")
    lead = (2 * share_a - share_b + Fraction(1, 2)).named("lead")
    found = of(lead.map(str, name="shown"), length=3)
    trace = found.trace("aab")
    assert trace["share of a"] == (0, 1, 1, Fraction(2, 3)) and trace["lead"][3] == Fraction(3, 2)
    assert [type(e).__name__ for e in found.variables.values()].count("Linear") == 1
    assert trace.output == tuple(str(x) for x in trace["lead"])
    assert set(trace["lead"]) <= set(found.domain(lead))


def test_missing_values():
    assert of(before.otherwise("c")).evaluate("ab") == ("c", "a")
    assert of(before.map(str.upper)).evaluate("ab") == (None, "A")
    assert of(both(before, tokens, operator.add)).evaluate("ab") == (None, "ab")
    assert of(before.map(lambda t: None if t == "a" else t)).evaluate("abc") == (None, None, "b")


def test_orders_choose_among_the_selected():
    same = select(tokens, tokens)
    assert of(aggregate(first(same), indices)).evaluate("abaa") == (1, 2, 1, 1)
    assert of(aggregate(latest(same), indices)).evaluate("abaa") == (1, 2, 3, 4)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=10))
def test_values_are_always_within_the_domain(row):
    for name in ("histogram", "most-frequent"):
        found = program(name)
        trace = found.trace(row)
        for variable, expression in found.variables.items():
            assert set(trace[variable]) - {None} <= set(found.domain(expression))


def test_inputs_are_the_seeds_and_have_answers():
    found = program("sort")
    assert found.inputs(random.Random(3)) == found.inputs(random.Random(3))
    clean, corrupt, answer, wrong = found.pair(random.Random(0), 8)
    assert len(clean) == len(corrupt) == 8 and answer != wrong
    assert found.evaluate(clean)[-1] == answer and found.evaluate(corrupt)[-1] == wrong


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: of(before).evaluate("abx"), "'x' at position 3 is no token. There are: a b c"),
        (lambda: of(before).evaluate("abcabca"), "reads 1 to 6 tokens; these are 7"),
        (lambda: of(before).evaluate(""), "reads 1 to 6 tokens; these are 0"),
        (
            lambda: of(aggregate(select(tokens, tokens), indices, name="place")).evaluate("aba"),
            r"place selects different values of indices at position 3: 1 at 1, 3 at 3.*latest, first",
        ),
        (
            lambda: of(tokens.map(int, name="number")).vocabulary,
            "number has no result for 'a', a value it may get: ValueError",
        ),
        (lambda: of(tokens.map(lambda t: [t], name="list")).vocabulary, r"list gives \['a'\], which is no value"),
        (lambda: of(tokens.numbers(lambda t: 1)), "the output is numerical; map it"),
        (lambda: of(tokens.numbers(lambda t: t).map(str)).vocabulary, "is numerical, but gives 'a' for 'a'"),
        (
            lambda: of(aggregate(select(tokens.numbers({"a": 1, "b": 2, "c": 3}, name="n"), indices), tokens)).evaluate(
                "a"
            ),
            r"the keys of select\(n, indices\) are numerical",
        ),
        (lambda: of((before + 1).map(str)).vocabulary, "before is categorical and cannot be added"),
        (lambda: of(both(tokens, constant("a"), operator.add)).vocabulary, "takes two categorical variables"),
        (lambda: of(before.map(str, name="before")).variables, "two expressions are called 'before'"),
        (lambda: selector_width(latest(select(tokens, tokens))), "without an order"),
        (lambda: of(before, tokens=("a", "a")), "tokens are different values"),
        (lambda: of(before, shortest=9), "inputs have 9 to 6 tokens"),
        (lambda: of(before).inputs(random.Random(0), 9), "inputs of 1 to 6 tokens, not 9"),
        (lambda: of(before).inputs(random.Random(0), 1), "has an answer at its last token"),
        (lambda: of(before).trace("ab", do={"befor": {1: "a"}}), "has no variable 'befor'. There are: indices"),
        (lambda: of(before).trace("ab", do={"before": {1: "x"}}), "'before' is never 'x'"),
        (lambda: of(before).trace("ab", do={"before": {3: "a"}}), "position 3 of 'before', but the last is 2"),
        (lambda: of(before).trace("ab", do={"before": ["a"]}), "1 values of 'before' for 3 positions"),
        (
            lambda: of(aggregate(latest(select(before, tokens)), tokens).map(lambda t: t, name="x"), tokens=()),
            "tokens are different values",
        ),
    ],
)
def test_wrong_programs_and_inputs_are_told_what_is_wrong_and_where(run, says):
    with pytest.raises(ProgramError, match=says):
        run()


def test_an_order_by_what_has_no_value_is_an_error():
    from patchclamp.organisms.compiled.language import greatest

    chosen = greatest(select(tokens, tokens, lambda k, q: True), before)
    with pytest.raises(ProgramError, match="orders by before, which has no value at one of the positions"):
        of(aggregate(chosen, tokens)).evaluate("ab")


def test_numbers_that_are_not_exact_are_refused():
    with pytest.raises(TypeError, match=r"0\.5 is no int or Fraction"):
        0.5 * tokens.numbers({"a": 1})


def test_a_misspelt_variable_of_a_trace_is_told_which_there_are():
    with pytest.raises(KeyError, match="There are: indices, tokens, before"):
        of(before).trace("ab")["befor"]
