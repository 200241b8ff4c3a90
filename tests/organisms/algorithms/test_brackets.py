"""Brackets: the shipped weights tell balanced strings from near ones that training never contained."""

import random

import pytest
import torch

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.algorithms import brackets
from patchclamp.organisms.algorithms.brackets import (
    BALANCED,
    BEGIN,
    END,
    LONGEST,
    PAD,
    RECIPES,
    UNBALANCED,
    balanced,
    encode,
    held_out,
    strings,
)

LETTERS = {brackets.OPEN: "(", brackets.CLOSE: ")"}


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:brackets")


@pytest.fixture(scope="module")
def held():
    return strings(1500, random.Random("test of brackets"), held=True)


def verdicts(model, some):
    tokens, answers = encode(some)
    end = (tokens == END).int().argmax(1)
    logits = model.run(tokens, attention_mask=tokens != PAD).logits[torch.arange(len(tokens)), end]
    return logits.argmax(-1), answers


def test_it_is_right_on_strings_that_training_never_contained(model, held):
    said, answers = verdicts(model, held)
    assert (said == answers).float().mean() >= 0.99


def test_it_is_right_of_both_kinds_of_fault(model, held):
    equal = [some for some in held if not balanced(some) and some.count("(") == some.count(")")]
    unequal = [some for some in held if some.count("(") != some.count(")")]
    for some in (equal, unequal):
        assert len(some) > 100
        assert (verdicts(model, some)[0] == UNBALANCED).float().mean() >= 0.97


def test_random_weights_are_at_chance(held):
    tokens, answers = encode(held)
    logits = brackets.end_logits(brackets.untrained(RECIPES["brackets"]), tokens)
    said = torch.where(logits[:, BALANCED] > logits[:, UNBALANCED], BALANCED, UNBALANCED)
    assert (said == answers).float().mean() < 0.75


def test_counting_alone_is_not_enough(held):
    counts_agree = [some.count("(") == some.count(")") for some in held]
    guess = torch.tensor(counts_agree) == torch.tensor([balanced(some) for some in held])
    assert guess.float().mean() < 0.85


@pytest.mark.parametrize(
    ("some", "answer"), [("()", True), ("(())()", True), ("", True), (")(", False), ("(()", False), ("())(", False)]
)
def test_the_rule(some, answer):
    assert balanced(some) == answer


def test_strings_have_all_lengths_and_two_thirds_balance():
    for side in (True, False):
        some = strings(2000, random.Random(0), held=side)
        assert 0.6 < sum(map(balanced, some)) / len(some) < 0.75
        assert len({len(brackets_) for brackets_ in some}) >= 11 and max(map(len, some)) == LONGEST
        assert all(held_out(brackets_) == side for brackets_ in some)


def test_samples_are_held_out_and_right():
    tokens, answers = organisms.truth("brackets").sample(200, seed=4)
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert row[0] == BEGIN
        inner = "".join(LETTERS[token] for token in row[1 : row.index(END)])
        assert set(row[row.index(END) + 1 :]) <= {PAD}
        assert held_out(inner) and answer == (BALANCED if balanced(inner) else UNBALANCED)


def test_training_goes_on_with_the_same_bits(monkeypatch, tmp_path):
    whole = brackets.train("brackets", tmp_path / "whole", steps=6, progress=False)
    fit = brackets.fit
    monkeypatch.setattr(brackets, "fit", lambda *given, **options: fit(*given, **options, stop_at=3))
    assert brackets.train("brackets", tmp_path / "parts", steps=6, progress=False) == whole[:3]
    monkeypatch.undo()
    assert brackets.train("brackets", tmp_path / "parts", steps=6, progress=False) == whole
    file = "model.safetensors"
    assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


@pytest.mark.slow
def test_a_third_of_the_recipe_learns_most_of_it(tmp_path):
    steps = RECIPES["brackets"].steps // 3
    losses = brackets.train("brackets", tmp_path, steps=steps, progress=False)
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
