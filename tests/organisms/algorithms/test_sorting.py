"""Sorting: the shipped weights sort lists that training never contained, and training contained none of them."""

import pytest
import torch

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.algorithms import sorting
from patchclamp.organisms.algorithms.sorting import LENGTH, NUMBERS, THEN, held_out, sequences, unsorted


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:sorting")


def test_it_sorts_lists_that_training_never_contained(model):
    tokens = sequences(unsorted(1000, seed=77))
    right = model.run(tokens[:, :-1]).logits[:, LENGTH:].argmax(-1) == tokens[:, LENGTH + 1 :]
    assert right.float().mean() >= 0.99 and right.all(1).float().mean() >= 0.97


def test_it_sorts_by_itself(model):
    lists = unsorted(64, seed=78)
    prompts = torch.cat([lists, torch.full((64, 1), THEN)], 1)
    written = model.generate(prompts, max_new_tokens=LENGTH).tokens[:, LENGTH + 1 :]
    assert (written == lists.sort(1).values).all(1).float().mean() >= 0.95


def test_it_counts_repeated_numbers(model):
    """Four numbers only, twice each on average: training hardly ever had such lists."""
    lists = torch.randint(4, (400, LENGTH), generator=torch.Generator().manual_seed(0)) + 10
    lists = lists[held_out(lists)]
    right = model.run(sequences(lists)[:, :-1]).logits[:, LENGTH:].argmax(-1) == lists.sort(1).values
    assert right.float().mean() >= 0.8


def test_random_weights_do_not_sort():
    torch_model = sorting.untrained(sorting.RECIPES["sorting"])
    tokens = sequences(unsorted(200, seed=77))
    right = sorting.answer_logits(torch_model, tokens).argmax(-1) == tokens[:, LENGTH + 1 :]
    assert right.float().mean() < 0.2


def test_the_sides_of_the_split_are_apart_and_as_large_as_said():
    held, seen = unsorted(500, seed=0), unsorted(500, seed=0, held=False)
    assert held_out(held).all() and not held_out(seen).any()
    drawn = torch.randint(NUMBERS, (5000, LENGTH), generator=torch.Generator().manual_seed(0))
    assert 0.17 < held_out(drawn).float().mean() < 0.23


def test_sampled_answers_are_the_next_of_the_sorted_numbers():
    tokens, answers = organisms.truth("sorting").sample(200, seed=3)
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        ordered = sorted(row[:LENGTH])
        written = [token for token in row[LENGTH + 1 :] if token != THEN]
        assert row[LENGTH] == THEN and written == ordered[: len(written)] and answer == ordered[len(written)]
        assert held_out(torch.tensor([row[:LENGTH]])).all()


def test_training_goes_on_with_the_same_bits(monkeypatch, tmp_path):
    whole = sorting.train("sorting", tmp_path / "whole", steps=6, progress=False)
    fit = sorting.fit
    monkeypatch.setattr(sorting, "fit", lambda *given, **options: fit(*given, **options, stop_at=3))
    assert sorting.train("sorting", tmp_path / "parts", steps=6, progress=False) == whole[:3]
    monkeypatch.undo()
    assert sorting.train("sorting", tmp_path / "parts", steps=6, progress=False) == whole
    file = "model.safetensors"
    assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


@pytest.mark.slow
def test_a_tenth_of_the_recipe_learns_most_of_it(tmp_path):
    steps = sorting.RECIPES["sorting"].steps // 10
    losses = sorting.train("sorting", tmp_path, steps=steps, progress=False)
    assert sum(losses[-20:]) < 0.4 * sum(losses[:20])
