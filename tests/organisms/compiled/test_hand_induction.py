"""The hand-written induction network does induction, by the three heads that were written and by nothing else."""

import pytest
import torch

import patchclamp as pc
from patchclamp import metrics
from patchclamp.organisms.compiled.hand_induction import (
    BOS,
    LENGTH,
    POSITIONS,
    SUPPRESSING,
    VOCABULARY,
    hand_induction,
    hand_induction_task,
    hand_induction_truth,
)
from patchclamp.sites import Site


@pytest.fixture(scope="module")
def model():
    return hand_induction()


@pytest.fixture(scope="module")
def task():
    return hand_induction_task(256, seed=0)


def answers(model, task, side="clean", do=()):
    return task.at_answer(model.run(getattr(task, side), do=do).logits)


def test_it_is_certain_of_the_right_token_and_of_the_other_when_corrupted(model, task):
    assert metrics.probability(answers(model, task), task).min() > 0.99
    assert answers(model, task, "corrupt").softmax(-1).gather(1, task.wrong).min() > 0.99


def test_it_certifies_and_is_a_standard_gpt2(model):
    assert model.certify().holds
    assert type(model.hf).__name__ == "GPT2LMHeadModel" and not list(model.hf.buffers())


def test_the_lag_varies_from_prompt_to_prompt(task):
    assert len(set((LENGTH - 1 - task.labels["A1"]).tolist())) >= 6


def test_clean_and_corrupted_prompts_differ_at_two_tokens_and_share_the_query(task):
    assert ((task.clean != task.corrupt).sum(1) == 2).all()
    assert (task.clean[:, -1] == task.corrupt[:, -1]).all()
    rows = torch.arange(len(task))
    assert (task.clean[rows, task.labels["A1"]] == task.clean[:, -1]).all()
    assert (task.corrupt[rows, task.labels["X"]] == task.clean[:, -1]).all()
    assert (task.clean[rows, task.labels["B"]] == task.answers[:, 0]).all()
    assert (task.corrupt[rows, task.labels["D"]] == task.wrong[:, 0]).all()


def test_heads_attend_as_written_up_to_the_last_position(model):
    ids = torch.cat([torch.tensor([BOS]), torch.arange(1, VOCABULARY), torch.arange(1, VOCABULARY)])[None]
    assert ids.shape[1] == POSITIONS - 1
    run = model.run(ids, record="pattern.*")
    previous = run["pattern.0"][0, 0].diagonal(-1)
    assert previous.min() > 0.999
    again = torch.arange(VOCABULARY, ids.shape[1])  # the second time around
    for head in (0, 1):
        assert run["pattern.1"][0, head, again, again - VOCABULARY + 2].min() > 0.999
        assert run["pattern.1"][0, head, 1:VOCABULARY, 0].min() > 0.999  # nothing to find: it rests on BOS


def test_norms_leave_the_stream_as_it_is(model, task):
    run = model.run(task.clean[:8], record=["resid_pre.*", "attn_in.*"])
    assert (run["attn_in.*"] - run["resid_pre.*"]).abs().max() < 1e-4


def test_all_other_weights_are_zero(model):
    planted = {(node.layer, node.unit) for node in hand_induction_truth().nodes}
    for layer in range(2):
        assert model.weights.W_out[layer].abs().max() == 0
        for head in range(4):
            assert (model.weights.W_O[layer, head].abs().max() > 0) == ((layer, head) in planted)


def test_ablating_planted_heads_ends_the_behaviour_and_ablating_others_changes_nothing(model, task):
    clean = answers(model, task)
    for node in hand_induction_truth().nodes - SUPPRESSING:
        ablated = answers(model, task, do=[pc.ablate(node)])
        assert metrics.top1(ablated, task).mean() < 0.2
    for layer, head in [(0, 1), (0, 3), (1, 2), (1, 3)]:
        assert torch.equal(answers(model, task, do=[pc.ablate(f"z.{layer}.{head}")]), clean)


def test_the_suppressing_head_lowers_the_answer(model, task):
    (head,) = SUPPRESSING
    clean, without = (metrics.logit_difference(answers(model, task, do=do), task) for do in ([], [pc.ablate(head)]))
    assert (without - clean).min() > 4


def test_the_truth_names_sites_that_exist(model):
    truth = hand_induction_truth()
    assert truth.nodes == {Site("z", 0, 0), Site("z", 1, 0), Site("z", 1, 1)}
    for site in truth.nodes | {end for edge in truth.edges for end in edge}:
        assert model.sites(str(site)) == [site]
    ids, right = truth.sample(16, seed=3)
    assert (model.run(ids).logits[:, -1].argmax(-1) == right).all()


def test_building_and_sampling_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    hand_induction()
    hand_induction_task(4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(hand_induction_task(4, seed=1).clean, hand_induction_task(4, seed=1).clean)
    assert not torch.equal(hand_induction_task(4, seed=1).clean, hand_induction_task(4, seed=2).clean)
