"""Scores are sums over pairs of paths, rotary positions included; what is not bilinear is refused."""

import pytest

import patchclamp as pc
from patchclamp.circuits import PathError, expand_score
from patchclamp.organisms.compiled.hand_induction import hand_induction, hand_induction_task
from tiny import build

PROMPT = [5, 9, 3, 7, 5, 11]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gptj", "llama", "phi3", "gemma"])
@pytest.mark.parametrize(("head", "key"), [("0.2", 4), ("2.1", 0)])
def test_pairs_of_paths_sum_to_the_score(name, head, key):
    model = pc.wrap(build(name).double(), name=name)
    table = expand_score(model, PROMPT, head=head, key=key)
    layer, index = map(int, head.split("."))
    score = model.run([PROMPT], record=f"scores.{layer}")[f"scores.{layer}"][0, index, -1, key]
    assert table.total == pytest.approx(float(score), abs=1e-9)
    assert abs(table.gap) < 5e-6


def test_paths_through_one_head_are_one_where_there_are_too_many():
    model = pc.wrap(build("gpt2").double(), name="gpt2")
    few, many = (expand_score(model, PROMPT, head="2.1", key=2, most=most) for most in (8, 1000))
    assert len(few.paths) < len(many.paths)
    assert abs(few.gap) < 5e-6 and abs(many.gap) < 5e-6
    assert any("… → head 1." in path.nodes[0] for path in few.paths)


def test_the_induction_heads_score_is_composed_with_the_previous_token_heads():
    model, task = hand_induction(), hand_induction_task(2)
    table = expand_score(model, task.clean[0], head="1.0", key=int(task.labels["B"][0]))
    assert table.paths[0].nodes == ("embed → query", "embed → head 0.0 → key")
    assert table.paths[0].contribution > 0.9 * table.total
    before = expand_score(model, task.clean[0], head="0.0", query=7, key=6)
    assert before.paths[0].nodes == ("pos_embed → query", "pos_embed → key")


@pytest.mark.parametrize(("name", "why"), [("qwen3", "a norm of their own"), ("bloom", "position bias")])
def test_scores_that_are_not_bilinear_are_refused(name, why):
    with pytest.raises(PathError, match=why):
        expand_score(pc.wrap(build(name), name=name), PROMPT, head="1.0", key=2)


def test_a_head_that_cannot_look_ahead_says_so():
    with pytest.raises(PathError, match="ahead"):
        expand_score(pc.wrap(build("gpt2"), name="gpt2"), PROMPT, head="1.0", query=1, key=3)


def test_several_heads_are_refused():
    with pytest.raises(PathError, match="one head"):
        expand_score(pc.wrap(build("gpt2"), name="gpt2"), PROMPT, head="1.*", key=0)
