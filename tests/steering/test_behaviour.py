"""Behaviours are measured a prompt at a time; side effects are exact where they can be computed by hand."""

import pytest
import torch

import patchclamp as pc
from patchclamp.steering import Neutral
from patchclamp.steering.behaviour import answers, begins_with, contains, last_logits, log_odds, writes_words


@pytest.fixture(scope="module")
def tales():
    return pc.load("organism:tales")


TEXTS = ["Mary went to the store.", "The day was long, and John had a", "A cat."]


def test_last_logits_are_those_of_each_prompt_alone(tales):
    together = last_logits(tales, TEXTS, batch=2)
    for row, text in zip(together, TEXTS, strict=True):
        assert torch.allclose(row, tales.run(text).logits[0, -1], atol=1e-4)


def test_log_odds_are_the_log_odds(tales):
    found = log_odds(TEXTS, [300, 301]).measure(tales)
    p = last_logits(tales, TEXTS).double().softmax(-1)[:, [300, 301]].sum(-1)
    assert torch.allclose(found.double(), (p / (1 - p)).log(), atol=1e-5)


def test_words_and_beginnings_are_counted_in_what_is_generated(tales):
    texts = tales.generate(TEXTS, max_new_tokens=6).new_text
    words = {texts[0].split()[0].strip(".,").lower()}
    assert float(writes_words(TEXTS, words, tokens=6).measure(tales)[0]) > 0
    assert float(writes_words(TEXTS, {"zzz"}, tokens=6).measure(tales).sum()) == 0
    start = texts[1].strip()[:4]
    assert float(begins_with(TEXTS, [start], tokens=6).measure(tales)[1]) == 1
    assert contains(TEXTS, [texts[2].strip()[2:6], "zzz"], tokens=6).measure(tales)[2] == 1
    assert float(contains(TEXTS, ["zzz"], tokens=6).measure(tales).sum()) == 0


def test_answers_are_the_task_s_metric(tales):
    task = pc.tasks.ioi(tales, n=8, seed=0)
    assert float(answers(task).measure(tales).mean()) == pytest.approx(float(task.baseline(tales).accuracy), abs=1e-6)


def test_halves_are_apart_and_follow_the_seed():
    behaviour = log_odds([str(i) for i in range(11)], [0])
    first, second = behaviour.halves(seed=3)
    assert sorted(first.prompts + second.prompts) == sorted(behaviour.prompts) and len(first.prompts) == 5
    assert first.prompts == behaviour.halves(seed=3)[0].prompts != behaviour.halves(seed=4)[0].prompts
    with pytest.raises(ValueError, match="cannot be split"):
        log_odds(["a"], [0]).halves()


def test_neutral_text_costs_nothing_without_interventions_and_what_it_costs_is_its_definition(tales):
    neutral = Neutral(tales, TEXTS, batch=2)
    nothing = neutral.measure([])
    assert nothing["rise"] == 0 and nothing["kl"] == 0 and nothing["perplexity"] == 1
    do = [pc.ablate("attn_out.1")]
    cost = neutral.measure(do)
    losses, divergences = [], []
    for text in TEXTS:
        clean, changed = (tales.run(text, do=d).logits[0, :-1].log_softmax(-1) for d in ([], do))
        ids = tales.tokens(text).ids[0, 1:]
        losses.append(-changed.gather(-1, ids[:, None])[:, 0])
        divergences.append((clean.exp() * (clean - changed)).sum(-1))
    assert cost["cross_entropy"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)
    assert cost["kl"] == pytest.approx(float(torch.cat(divergences).mean()), abs=1e-4) and cost["kl"] > 0


def test_interventions_of_single_prompts_are_refused(tales):
    with pytest.raises(ValueError, match="done to all alike"):
        last_logits(tales, TEXTS, [pc.ablate("attn_out.1", rows=[0])])
