from types import SimpleNamespace

import pytest
import torch

from patchclamp import metrics


def task(answers, wrong):
    return SimpleNamespace(answers=torch.tensor(answers), wrong=torch.tensor(wrong))


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 3.0]])


def test_logit_difference_is_a_difference_of_means_over_real_answers():
    several = task([[0, 1], [1, -1]], [[3, -1], [0, 2]])
    assert metrics.logit_difference(LOGITS, several).tolist() == [2.5, 2.5]


def test_logit_difference_ignores_a_constant_added_to_all_logits():
    several = task([[0, 1], [1, -1]], [[3, -1], [0, 2]])
    shifted = metrics.logit_difference(LOGITS + 7.0, several)
    torch.testing.assert_close(shifted, metrics.logit_difference(LOGITS, several))


def test_probability_sums_the_right_answers():
    softmax = LOGITS.softmax(-1)
    got = metrics.probability(LOGITS, task([[0, 1], [2, -1]], [[3], [0]]))
    torch.testing.assert_close(got, torch.stack([softmax[0, 0] + softmax[0, 1], softmax[1, 2]]))


def test_probability_difference_of_all_tokens_split_in_two_is_one_minus_twice_the_wrong():
    split = task([[0, 1], [0, 1]], [[2, 3], [2, 3]])
    right = metrics.probability(LOGITS, split)
    torch.testing.assert_close(metrics.probability_difference(LOGITS, split), 2 * right - 1)


def test_log_probability_is_minus_cross_entropy_for_one_answer():
    one = task([[3], [2]], [[0], [0]])
    expected = -torch.nn.functional.cross_entropy(LOGITS, torch.tensor([3, 2]), reduction="none")
    torch.testing.assert_close(metrics.log_probability(LOGITS, one), expected)


def test_log_probability_does_not_underflow():
    far = torch.tensor([[0.0, 500.0]])
    assert metrics.log_probability(far, task([[0]], [[1]])).item() == -500.0


def test_accuracy_compares_the_best_of_both_and_a_tie_is_wrong():
    assert metrics.accuracy(LOGITS, task([[3, 0], [1, -1]], [[1, 2], [3, -1]])).tolist() == [1.0, 0.0]


def test_top1_asks_the_whole_vocabulary():
    beaten_by_a_bystander = task([[1], [1]], [[2], [0]])
    assert metrics.accuracy(LOGITS, beaten_by_a_bystander).tolist() == [1.0, 1.0]
    assert metrics.top1(LOGITS, beaten_by_a_bystander).tolist() == [0.0, 1.0]


def test_top1_never_counts_padding_as_an_answer():
    last_is_best = torch.tensor([[0.0, 0.0, 5.0]])
    assert metrics.top1(last_is_best, task([[0, -1]], [[1]])).item() == 0.0


def test_rank_counts_strictly_better_tokens():
    assert metrics.rank(LOGITS, task([[2, 3], [3, -1]], [[0], [0]])).tolist() == [3.0, 1.0]


def test_kl_divergence_matches_torch_and_vanishes_on_the_reference():
    one = task([[0], [0]], [[1], [1]])
    other = LOGITS.flip(1)
    expected = torch.nn.functional.kl_div(other.log_softmax(-1), LOGITS.softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(metrics.kl_divergence(LOGITS)(other, one), expected)
    assert metrics.kl_divergence(LOGITS)(LOGITS, one).abs().max() < 1e-7
    with pytest.raises(ValueError, match="same prompts"):
        metrics.kl_divergence(LOGITS)(other[:1], one)


def test_metrics_are_differentiable():
    logits = LOGITS.clone().requires_grad_()
    metrics.logit_difference(logits, task([[0, 1], [1, -1]], [[3, -1], [0, 2]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.5, 0.5, 0.0, -1.0], [-0.5, 1.0, -0.5, 0.0]]


def test_normalise_maps_clean_to_one_and_corrupted_to_zero():
    got = metrics.normalise(torch.tensor([1.0, 3.0, 5.0]), clean=torch.tensor(5.0), corrupted=1.0)
    assert got.tolist() == [0.0, 0.5, 1.0]


def test_normalise_refuses_a_corruption_without_effect():
    with pytest.raises(ValueError, match="does not change the behaviour"):
        metrics.normalise(torch.tensor([1.0]), clean=2.0, corrupted=2.0)
    with pytest.raises(ValueError, match="does not change the behaviour"):
        metrics.normalise(torch.tensor([1.0]), clean=0.0, corrupted=0.0)


@pytest.mark.parametrize(
    ("name", "nearest"), [("logit_diff", "logit_difference"), ("Log-Probability", "log_probability"), ("ranks", "rank")]
)
def test_by_name_suggests(name, nearest):
    assert metrics.by_name(nearest) is getattr(metrics, nearest)
    with pytest.raises(LookupError, match=f"Did you mean '{nearest}'"):
        metrics.by_name(name)


def test_by_name_explains_kl_divergence():
    with pytest.raises(LookupError, match="reference"):
        metrics.by_name("kl_divergence")


def test_wrong_shapes_are_refused_with_what_was_expected():
    with pytest.raises(ValueError, match="at the answer position"):
        metrics.accuracy(LOGITS[None], task([[0]], [[1]]))
    with pytest.raises(ValueError, match=r"\[2, k\]"):
        metrics.accuracy(LOGITS, task([[0]], [[1]]))
    with pytest.raises(ValueError, match="row 1 has no token in wrong"):
        metrics.accuracy(LOGITS, task([[0], [0]], [[1], [-1]]))
    with pytest.raises(ValueError, match="vocabulary of 4"):
        metrics.rank(LOGITS, task([[0], [9]], [[1], [1]]))
