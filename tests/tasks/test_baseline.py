import pytest
import torch

from patchclamp.tasks import Task


def copying(n=12, right=12):
    """Prompts whose last token is the answer of a model that repeats it; the last `n - right` rows expect another."""
    clean = [[1, 10 + row] for row in range(n)]
    corrupt = [[1, 30 + row] for row in range(n)]
    answers = [10 + row if row < right else 49 for row in range(n)]
    return Task.from_tokens(clean=clean, corrupt=corrupt, answers=answers, wrong=[30 + row for row in range(n)])


def test_baseline_measures_clean_and_corrupted(guessing):
    base = copying().baseline(guessing())
    assert (base.accuracy, base.top1, base.corrupted_accuracy, base.n) == (1.0, 1.0, 0.0, 12)
    assert (base.clean, base.corrupted) == (10.0, -10.0)
    assert base.holds


def test_baseline_does_not_hold_for_a_model_that_cannot(guessing):
    base = copying(right=0).baseline(guessing())
    assert base.accuracy == 0.0
    assert not base.holds


def test_too_few_prompts_are_not_enough_to_go_on(guessing):
    one = copying(n=2, right=2).baseline(guessing())
    assert one.accuracy == 1.0
    assert one.accuracy_interval[0] < 0.5
    assert not one.holds


def test_interval_covers_the_accuracy_and_is_reproducible(guessing):
    some = copying(right=8)
    first, second = some.baseline(guessing(), seed=3), some.baseline(guessing(), seed=3)
    assert first == second
    assert first.accuracy_interval[0] < first.accuracy < first.accuracy_interval[1]


def test_batches_do_not_change_the_numbers(guessing):
    assert copying().baseline(guessing(), batch=5) == copying().baseline(guessing(), batch=64)


def test_metric_by_name_or_function(guessing):
    assert copying().baseline(guessing(), metric="rank").clean == 1.0
    with pytest.raises(LookupError, match="Did you mean 'accuracy'"):
        copying().baseline(guessing(), metric="acuracy")


def test_global_generator_is_untouched(guessing):
    before = torch.random.get_rng_state()
    copying().baseline(guessing())
    assert torch.equal(before, torch.random.get_rng_state())
