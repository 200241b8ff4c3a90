"""Every language model has something to do: its own tokens again, where its tokenizer has no words of ours."""

import pytest
import torch

import patchclamp as pc
from patchclamp import tasks
from patchclamp.organisms import Truth
from patchclamp.studies import Lab, NotApplicable
from patchclamp.studies.behaviour import REPEATED, REPEATS, repeats, task_of, task_on
from patchclamp.studies.lab import load_organism
from tiny import build


@pytest.fixture(scope="module")
def model():
    return pc.wrap(build("llama"), name="tiny")


def test_what_is_repeated_tells_the_answer_and_the_corrupted_prompt_another(model):
    task = repeats(model, n=16, seed=3)
    assert task.clean.shape == (16, REPEATS)
    for side, answers in ((task.clean, task.answers), (task.corrupt, task.wrong)):
        for row, answer in zip(side.tolist(), answers[:, 0].tolist(), strict=True):
            first = row.index(row[-1])
            assert first < REPEATS - 1 and row[first + 1] == answer
    again, other = repeats(model, n=16, seed=3), repeats(model, n=16, seed=4)
    assert torch.equal(task.clean, again.clean) and not torch.equal(task.clean, other.clean)


def test_a_model_without_our_words_is_asked_to_repeat_its_own_and_tales_for_names(model):
    lab = Lab(model, Truth(""))
    assert lab.once(task_of).name == "repeated tokens" and REPEATED in lab.used
    assert task_of(Lab(load_organism("tales"), Truth(""))).name == "ioi"


def test_a_task_that_a_tokenizer_has_no_words_for_is_not_asked(model):
    with pytest.raises(NotApplicable, match="needs a model with a tokenizer"):
        task_on(model, tasks.ioi, n=2)
    digits = load_organism("tales").tokenizer
    with pytest.raises(NotApplicable, match=r"tokenizer that has the task's words \(ioi: only 0 of .*needs 4\)$"):
        task_on(pc.wrap(build("llama"), _Split(digits), name="other"), tasks.ioi, n=2)


class _Split:
    """A tokenizer that has no word whole."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, text, **options):
        return self.inner(" ".join(text) if isinstance(text, str) else [" ".join(one) for one in text], **options)

    def __getattr__(self, name):
        return getattr(self.inner, name)
