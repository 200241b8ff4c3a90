"""Paths sum to the logit exactly, each is what an independent computation says, and what is no sum is refused."""

import pytest
import torch

import patchclamp as pc
from patchclamp.circuits import PathError, Paths, expand
from patchclamp.organisms.compiled.hand_induction import hand_induction, hand_induction_task
from tiny import build

PROMPT = [5, 9, 3, 7, 5, 11]
LINEAR = ["gpt2", "gpt_neox", "gptj", "bloom", "falcon", "opt", "llama", "qwen3", "gemma", "phi3", "mixtral", "granite"]


def double(name):
    return pc.wrap(build(name).double(), name=name)


@pytest.mark.parametrize("name", LINEAR)
def test_paths_sum_to_the_models_own_logits(name):
    model = pc.wrap(build(name), name=name)
    logits = model.run([PROMPT]).logits[0, -1]
    table = expand(model, PROMPT, answer=4, wrong=8, steps=100_000)
    assert all(path.complete for path in table.paths)
    assert table.total == pytest.approx(float(logits[4] - logits[8]), abs=1e-6)
    assert abs(table.gap) < 2e-5


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "bloom"])
def test_in_float64_the_sum_is_exact_where_norms_compute_in_it(name):
    assert abs(expand(double(name), PROMPT, steps=100_000).gap) < 1e-10


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_what_is_not_followed_is_summed_up_exactly(steps):
    model = double("gpt2")
    table = expand(model, PROMPT, answer=4, wrong=8, steps=steps)
    rest = [path for path in table.paths if not path.complete]
    assert rest and abs(table.gap) < 1e-10
    assert all(path.nodes[1].startswith("head ") for path in rest)


def test_a_rest_is_the_sum_of_the_paths_that_it_stands_for():
    model = double("gpt2")
    short, full = (expand(model, PROMPT, answer=4, wrong=8, steps=steps) for steps in (0, 100_000))
    for path in short.paths:
        if not path.complete:
            ends = path.nodes[1:]
            parts = [p.contribution for p in full.paths if p.nodes[-len(ends) :] == ends]
            assert sum(parts) == pytest.approx(path.contribution, abs=1e-10)


def test_a_path_is_the_product_of_its_matrices():
    """embed → head 0.1 → head 2.3 → logits in GPT-2, written out from the weights and the recorded patterns."""
    model = double("gpt2")
    table = expand(model, PROMPT, answer=4, wrong=8, steps=100_000)
    run = model.run([PROMPT], record=["embed", "pattern.*", "resid_pre.*", "resid_post.2"])
    body = model.hf.transformer

    def norm(x, stream, module):
        scale = ((stream - stream.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + module.eps).sqrt()
        return (x - x.mean(-1, keepdim=True)) / scale * module.weight

    with torch.no_grad():
        x = run["embed"][0]
        for layer, head in ((0, 1), (2, 3)):
            read = norm(x, run[f"resid_pre.{layer}"][0], body.h[layer].ln_1)
            values = body.h[layer].attn.c_attn.weight[:, 64 + head * 8 : 64 + head * 8 + 8]
            x = (
                run[f"pattern.{layer}"][0, head]
                @ read
                @ values
                @ body.h[layer].attn.c_proj.weight[head * 8 : head * 8 + 8]
            )
        final = norm(x, run["resid_post.2"][0], body.ln_f)[-1]
        expected = float(final @ (model.hf.lm_head.weight[4] - model.hf.lm_head.weight[8]))
    (path,) = [p for p in table.paths if p.nodes == ("embed", "head 0.1", "head 2.3", "logits")]
    assert path.contribution == pytest.approx(expected, abs=1e-10)
    assert path.heads == ("0.1", "2.3")


def test_a_recomputed_softmax_is_not_additive():
    """The control: the model run on two halves of its embeddings does not give the two halves of its logits."""
    model = double("gpt2")
    stream = model.run([PROMPT], record="resid_pre.0")["resid_pre.0"]
    halves = [model.run([PROMPT], do=[pc.patch("resid_pre.0", 0.5 * stream)]).logits[0, -1, 4] for _ in range(2)]
    assert abs(float(sum(halves) - model.run([PROMPT]).logits[0, -1, 4])) > 1e-3


def test_the_hand_written_circuit_comes_out():
    model, task = hand_induction(), hand_induction_task(4)
    for row in range(4):
        table = expand(model, task.clean[row], answer=int(task.answers[row, 0]), wrong=int(task.wrong[row, 0]))
        first, second = table.paths[:2]
        assert first.nodes == ("embed", "head 1.0", "logits") and first.contribution > 17
        assert second.nodes == ("embed", "head 1.1", "logits") and second.contribution < -5
        assert all(abs(path.contribution) < 1e-4 for path in table.paths[2:])


def test_the_default_is_the_most_probable_token():
    model = double("gpt2")
    best = int(model.run([PROMPT]).logits[0, 2].argmax())
    table = expand(model, PROMPT, pos=2)
    assert table.target == f"token {best}" and abs(table.gap) < 1e-10


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gemma2", "no linear map"),
        ("olmo2", "no norm in front"),
        ("mamba", "no softmax attention"),
        ("vit", "no logits"),
    ],
)
def test_what_is_no_sum_over_paths_is_refused_by_name(name, why):
    with pytest.raises(PathError, match=f"{name}.* {why}|{why}"):
        expand(pc.wrap(build(name), name=name), PROMPT)


def test_text_without_a_tokenizer_and_two_prompts_are_refused():
    model = double("gpt2")
    with pytest.raises(PathError, match="no tokenizer"):
        expand(model, PROMPT, answer=" Mary")
    with pytest.raises(PathError, match="one prompt"):
        expand(model, torch.tensor([PROMPT, PROMPT]))


def test_the_table_saves_loads_and_shows(tmp_path):
    table = expand(double("gpt2"), PROMPT, answer=4, top=5)
    assert Paths.load(table.save(tmp_path / "paths.json")) == table
    assert len(table.rows()) == 5 and table.rows(2)[1]["covered"] >= table.rows(2)[0]["covered"]
    assert "→ logits" in table._repr_html_() and len(str(table).splitlines()) == 6
    assert len(table.plot().data[0].x) == 5
