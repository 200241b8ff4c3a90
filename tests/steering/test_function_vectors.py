"""Function vectors: centred ones sum to zero over tasks, and give their task's answers on a bare query."""

import random

import pytest
import torch

import patchclamp as pc
from patchclamp.organisms.tales import knowledge
from patchclamp.steering import DirectionError, function_vectors

TASKS = ("antonym", "capital", "language")


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales")


def prompts(n=12):
    rng = random.Random(0)
    shown = {task: [knowledge.shots(knowledge.examples(rng, task)).text for _ in range(n)] for task in TASKS}
    return {task: [text[: text.rindex(" A:") + 3] for text in texts] for task, texts in shown.items()}


def test_centred_ones_sum_to_nothing_and_differ_from_the_means_by_one_offset(model):
    ours = function_vectors(model, prompts(), site="resid_post.2")
    plain = function_vectors(model, prompts(), site="resid_post.2", centred=False)
    torch.testing.assert_close(sum(d.vector for d in ours.values()), torch.zeros(96), atol=1e-5, rtol=0)
    offsets = torch.stack([plain[task].vector - ours[task].vector for task in TASKS])
    torch.testing.assert_close(offsets, offsets[:1].expand(3, -1), atol=1e-5, rtol=1e-5)


def test_it_makes_the_task_likelier(model):
    vectors = function_vectors(model, prompts(), site="resid_post.2")
    answer = model.tokenizer(" Berlin", add_special_tokens=False)["input_ids"][0]
    other = model.tokenizer(" German", add_special_tokens=False)["input_ids"][0]
    gaps = []
    for task in ("capital", "language"):
        logits = model.run("Q: Germany A:", do=[vectors[task].add(2.0, pos=-1)]).logits[0, -1]
        gaps.append(float(logits[answer] - logits[other]))
    assert gaps[0] > 0 > gaps[1]


def test_one_task_cannot_be_centred(model):
    with pytest.raises(DirectionError, match="at least two tasks"):
        function_vectors(model, {"antonym": prompts()["antonym"]}, site="resid_post.2")
