"""Compiled networks say what their programs say, plain, rotated and superposed, and their truth is true of them."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.compiled import ORGANISMS
from patchclamp.organisms.compiled.compile import MARGIN, compile
from patchclamp.organisms.compiled.language import (
    ProgramError,
    aggregate,
    constant,
    indices,
    select,
    selector_width,
    tokens,
)
from patchclamp.organisms.compiled.program import Program
from patchclamp.organisms.compiled.programs import PROGRAMS, program
from patchclamp.sites import Site

NAMES = [one.name for one in PROGRAMS]
SHIPPED = [(one.name.removeprefix("compiled:").split("+")) for one in ORGANISMS if "+" in one.name]
HOW = {"rotated": "rotate", "superposed": "superpose"}
COMPRESSED = [(name, HOW[how]) for name, how in SHIPPED]
REST = [(name, how) for name in NAMES for how in HOW.values() if (name, how) not in COMPRESSED]


def check(model, rows):
    """The network's most probable token is the program's output at every position; where there is none, no token's."""
    ids = [model.program.ids(row) for row in rows]
    for length in {len(row) for row in ids}:
        some = [row for row in ids if len(row) == length]
        logits = model.run(torch.tensor(some)).logits
        for row, found in zip(some, logits, strict=True):
            wanted = model.program.evaluate([model.program.vocabulary[i] for i in row[1:]])
            for position, value in enumerate(wanted, start=1):
                if value is None:
                    assert found[position].abs().max() < 0.01 * MARGIN
                    continue
                best, second = found[position].topk(2).values
                assert model.program.vocabulary[found[position].argmax()] == value and best - second > 0.99 * MARGIN


def is_exact(model):
    ids, answers = model.truth.sample(1000, seed=11)
    best = model.run(ids).logits[:, -1].topk(2)
    assert torch.equal(best.indices[:, 0], answers)
    assert (best.values[:, 0] - best.values[:, 1]).min() > 0.99 * MARGIN
    check(model, [[model.program.vocabulary[i] for i in row[1:]] for row in ids[:25].tolist()])
    assert model.certify().holds


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exact_on_1000_inputs_and_certified(compiled, name):
    is_exact(compiled(name))


@pytest.mark.parametrize(("name", "how"), COMPRESSED)
def test_so_are_the_compressed_ones_that_are_listed(compiled, name, how):
    is_exact(compiled(name, how))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), REST)
def test_so_are_all_others(compiled, name, how):
    is_exact(compiled(name, how))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*((name, None) for name in NAMES), *COMPRESSED]), st.integers(0, 10**6), st.data())
def test_it_is_exact_at_every_position_of_inputs_of_every_length(compiled, which, seed, data):
    found = compiled(*which)
    length = data.draw(st.integers(found.program.shortest, found.program.length))
    row, _ = found.program.inputs(random.Random(seed), length)
    check(found, [row])


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_sequence_of_tokens_is_an_input_of_induction(compiled, row):
    check(compiled("induction", "superpose"), [row])


def test_it_is_a_standard_gpt2_that_any_tool_loads(compiled, tmp_path):
    from transformers import AutoModelForCausalLM

    model = compiled("sort")
    model.hf.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids, _ = model.truth.sample(8)
    assert type(again).__name__ == "GPT2LMHeadModel" and not list(again.buffers())
    assert torch.equal(again(ids).logits, model.run(ids).logits)


def test_variables_are_where_the_alignment_says(compiled):
    """What a home writes at a position is the feature of the variable's value there."""
    model = compiled("indirect-object")
    truth = model.truth
    ids, answers = truth.sample(16, seed=2)
    assert truth.alignment["tokens"] == Site("embed")
    for name in ("subject", "count", "named twice"):
        site = truth.alignment[name]
        sent = Site("head_out", site.layer, site.unit) if site.kind == "z" else site
        run = model.run(ids, record=[sent])
        for row in range(len(ids)):
            trace = model.program.trace([model.program.vocabulary[i] for i in ids[row, 1:].tolist()])
            for position, value in enumerate(trace[name]):
                if position and value is not None:
                    own = torch.stack(
                        [truth.features[f"{name}={v}"] for v in model.program.domain(model.program.variables[name])]
                    )
                    seen = run[sent][row, position] @ own.T / own.pow(2).sum(-1)
                    assert model.program.domain(model.program.variables[name])[seen.argmax()] == value
                    assert abs(float(seen.max()) - 1) < 1e-4
    ablated = model.run(ids, do=[pc.ablate(truth.alignment["subject"])]).logits[:, -1].argmax(-1)
    assert (ablated != answers).any()


@pytest.mark.parametrize("how", [None, "rotate", "superpose"])
def test_an_interchange_in_the_network_is_one_in_the_interpreter(compiled, how):
    """Patching a variable's home from another input does what the program does with the other input's values."""
    model = compiled("reverse", how)
    base, source = (model.truth.sample(40, seed=seed)[0] for seed in (1, 2))
    for name in ("separator", "source"):
        site = model.truth.alignment[name]
        swapped = model.run(base, do=[pc.patch(site, model.run(source, record=[site]))]).logits[:, -1]
        changed = 0
        for row in range(len(base)):
            here, there = ([model.program.vocabulary[i] for i in ids[row, 1:].tolist()] for ids in (base, source))
            other = model.program.trace(there)
            wanted = model.program.trace(here, do={name: other[name]}).output[-1]
            changed += wanted != model.program.evaluate(here)[-1]
            if wanted is not None:
                assert model.program.vocabulary[swapped[row].argmax()] == wanted
            else:
                assert swapped[row].abs().max() < 0.01 * MARGIN
        assert changed > 5


def test_features_of_plain_and_rotated_networks_are_orthogonal_and_sum_to_zero(compiled):
    for how in (None, "rotate"):
        directions = torch.stack(list(compiled("histogram", how).truth.features.values()))
        gram = directions @ directions.T
        assert (gram - gram.diagonal().diag()).abs().max() < 1e-5
        assert directions.sum(-1).abs().max() < 1e-5
    plain = torch.stack(list(compiled("histogram").truth.features.values()))
    assert ((plain != 0).sum(-1) == 2).all()
    rotated = torch.stack(list(compiled("histogram", "rotate").truth.features.values()))
    assert ((rotated.abs() > 1e-3).sum(-1) > 10).all()


def test_superposed_variables_have_more_values_than_dimensions(compiled):
    truth = compiled("histogram", "superpose").truth
    assert truth.packing_ratio > 3 and not truth.unpacked
    values, dims = truth.packing["count"]
    directions = torch.stack([d for name, d in truth.features.items() if name.startswith("count=")])
    assert len(directions) == values and torch.linalg.matrix_rank(directions) == dims < values
    assert compiled("histogram").truth.packing_ratio == 1


def test_what_cannot_be_packed_says_why(compiled):
    truth = compiled("induction", "superpose").truth
    assert "orders by it" in truth.unpacked["indices"] or "more than equality" in truth.unpacked["indices"]
    values, dims = truth.packing["indices"]
    assert values == dims and truth.packing["tokens"] == truth.packing["before"] == (8, 3)


def test_the_seed_decides_the_rotation_and_leaves_the_global_generator_alone(compiled):
    state = torch.get_rng_state()
    weights = [compile(program("sort"), compression="rotate", seed=s).weights.W_E for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_tasks_are_for_patching(compiled):
    model = compiled("induction")
    task = model.task(16, seed=3)
    assert task.clean.shape == task.corrupt.shape == (16, 13)
    assert (task.answers != task.wrong).all()
    for side, wanted in (("clean", task.answers), ("corrupt", task.wrong)):
        assert torch.equal(model.run(getattr(task, side)).logits[:, -1].argmax(-1), wanted[:, 0])
    effects = pc.patching.sweep(model, task, "z.*.*", positions="all")
    assert float(effects.sel(layer=1, head=0)) == pytest.approx(1, abs=1e-3)
    assert abs(float(effects.sel(layer=1, head=1))) < 1e-3


def test_organisms_are_listed_loaded_and_true():
    names = [name for name in organisms.names() if name.startswith("compiled:")]
    assert len(names) >= 15 + 4 and "compiled:reverse+rotated" in names and "compiled:induction+superposed" in names
    model = pc.load("organism:compiled:induction+superposed")
    truth = organisms.truth("compiled:induction+superposed")
    assert truth.name == model.truth.name == "compiled:induction+superposed" and truth.edges == model.truth.edges
    ids, answers = truth.sample(32, seed=1)
    assert torch.equal(model.run(ids).logits[:, -1].argmax(-1), answers)


def test_an_expression_compiles_with_an_alphabet_and_a_length():
    same = selector_width(select(tokens, tokens), name="count").map(str)
    model = organisms.compile(same, vocabulary=("x", "y"), length=4)
    check(model, ["xyxx", "yy", "x"])
    longer = organisms.compile(model.program, length=6)
    assert longer.program.length == 6 and longer.program.tokens == ("x", "y")


def test_what_stands_at_bos_is_never_read():
    """A value that a variable has even at BOS, and a head that finds nothing and rests there."""
    filled = aggregate(select(indices, indices, lambda k, q: k == q - 1), tokens).otherwise("none", name="filled")
    found = select(filled, tokens, lambda k, q: k == "none" and q == "b")
    output = aggregate(found, filled, name="taken").otherwise("nothing")
    for how in (None, "rotate", "superpose"):
        model = organisms.compile(Program("bos", output, ("a", "b"), 5), compression=how)
        check(model, ["abab", "b", "aabba"])
    counted = selector_width(select(filled, constant("none"))).map(str)
    check(organisms.compile(Program("bos", counted, ("a", "b"), 5)), ["abab", "b"])


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [
        (lambda: organisms.compile(tokens), TypeError, "needs its alphabet and its length"),
        (
            lambda: organisms.compile(program("sort"), compression="rotated"),
            ValueError,
            "None, 'rotate' or 'superpose'",
        ),
        (
            lambda: organisms.compile(aggregate(select(tokens, tokens), indices), vocabulary=("a", "b"), length=5),
            ProgramError,
            "selects different values of indices at position",
        ),
    ],
)
def test_wrong_calls_are_told_what_is_wrong(run, error, says):
    with pytest.raises(error, match=says):
        run()
