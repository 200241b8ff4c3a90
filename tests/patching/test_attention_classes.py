"""Scores of written heads are their classes, and random weights have none."""

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp.organisms.compiled.hand_induction import hand_induction
from patchclamp.patching import attention_classes, repeated_tokens
from patchclamp.patching.attention_classes import KINDS, key_classes
from patchclamp.sites import SiteError
from patching import cases


@pytest.fixture(scope="module")
def scores():
    return attention_classes(hand_induction(), draws=50)


def test_the_written_heads_are_in_their_classes(scores):
    score, p = scores["score"], scores["p"]
    assert float(score.sel(kind="previous", layer=0, head=0)) > 0.98
    assert (score.sel(kind="induction", layer=1, head=[0, 1]) > 0.95).all()
    assert (p.sel(kind="induction", layer=1, head=[0, 1]) == 1 / 51).all()
    others = score.sel(kind="previous").values.ravel()[1:]
    assert (others < 0.2).all()


def test_heads_that_do_nothing_attend_as_the_null_says(scores):
    """All weights of heads 2 and 3 are zero: attention is even, and so is that of random keys."""
    even = scores.sel(head=[2, 3], kind=["previous", "duplicate", "first"])
    assert np.allclose(even["score"], even["null"], atol=0.02)


def test_classes_of_a_prompt():
    ids = torch.tensor([[9, 5, 6, 5, 6]])
    classes = {kind: found[0].nonzero().tolist() for kind, found in key_classes(ids, torch.ones_like(ids) > 0).items()}
    assert classes["previous"] == [[1, 0], [2, 1], [3, 2], [4, 3]]
    assert classes["duplicate"] == [[3, 1], [4, 2]]
    assert classes["induction"] == [[3, 2], [4, 3]]
    assert classes["first"] == [[1, 0], [2, 0], [3, 0], [4, 0]]


def test_padding_is_neither_query_nor_key():
    model = cases.model("llama")
    ids = repeated_tokens(model, n=4, length=6)
    mask = torch.ones_like(ids) > 0
    padded = torch.cat([ids, torch.zeros(4, 3, dtype=torch.long)], 1), torch.cat([mask, torch.zeros(4, 3) > 0], 1)
    whole = attention_classes(model, ids, draws=1)["score"]
    assert np.allclose(
        attention_classes(model, padded[0], attention_mask=padded[1], draws=1)["score"], whole, atol=1e-5
    )


def test_repeated_tokens_are_different_and_said_twice():
    ids = repeated_tokens(cases.model("gpt2"), n=3, length=7, seed=1)
    assert ids.shape == (3, 15) and (ids[:, 0] == 1).all()
    assert torch.equal(ids[:, 1:8], ids[:, 8:]) and all(len(row.unique()) == 7 for row in ids[:, 1:])
    assert torch.equal(ids, repeated_tokens(cases.model("gpt2"), n=3, length=7, seed=1))


def test_errors_say_what_was_meant():
    with pytest.raises(ValueError, match="null"):
        attention_classes(cases.model("gpt2"), draws=0)
    with pytest.raises(ValueError, match="vocabulary"):
        repeated_tokens(cases.model("gpt2"), length=200)
    with pytest.raises((SiteError, TypeError)):
        attention_classes(pc.wrap(torch.nn.Linear(2, 2)), torch.ones(1, 2))
    assert KINDS == ("previous", "duplicate", "induction", "first")
