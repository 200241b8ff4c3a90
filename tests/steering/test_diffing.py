"""Traces: nothing between a model and itself, exactly what was added where something was, read by lens and prompt."""

import pytest
import torch

import patchclamp as pc
from patchclamp.steering import Direction, DirectionError, diffing

TEXTS = ["Mary went to the store. The store was big.", "John has a pet dog and a cat.", "Count: 1 2 3 4 5 6."]


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales")


def test_a_model_leaves_no_trace_on_itself(model):
    found = diffing.traces(model, model, TEXTS, positions=3)
    assert list(found) == [f"resid_post.{layer}" for layer in range(model.n_layers)]
    assert all(not trace.vectors.any() for trace in found.values())


def test_the_trace_is_the_mean_difference_of_the_two_models_states(model):
    tuned = pc.load("organism:tales-sea")
    trace = diffing.traces(model, tuned, TEXTS, sites="resid_post.1", positions=4)["resid_post.1"]
    before, after = (m.run(TEXTS, record="resid_post.1")["resid_post.1"][:, :4] for m in (model, tuned))
    torch.testing.assert_close(trace.vectors, (after - before).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trace.norms, after.norm(dim=-1).mean(0))
    torch.testing.assert_close(trace.direction().vector, trace.vectors[1:].mean(0))
    torch.testing.assert_close(trace.sizes, trace.vectors.norm(dim=-1) / trace.norms)


def test_the_lens_of_the_last_state_is_the_prediction(model):
    run = model.run(TEXTS[0], record="resid_post.3")
    seen = diffing.lens(model, run["resid_post.3"][0])
    torch.testing.assert_close(seen, run.logits[0].log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert diffing.top(model, run["resid_post.3"][0], k=1)[-1] == [
        model.tokenizer.decode([int(run.logits[0, -1].argmax())]).strip()
    ]


def test_the_patchscope_puts_the_direction_at_the_last_token(model):
    prompt, at = " cat cat; dog dog; ?", "resid_post.2"
    own = model.run(prompt, record=at)
    state = own[at][0, -1]
    seen = diffing.patchscope(model, Direction(at, state), prompt, float(state.norm()), scales=(1.0, 2.0))
    assert seen.shape == (2, own.logits.shape[-1])
    torch.testing.assert_close(seen[0], own.logits[0, -1].log_softmax(-1), atol=1e-4, rtol=1e-4)


def test_the_strength_tolerated_keeps_within_the_budget(model):
    direction = Direction("resid_post.2", torch.randn(96, generator=torch.Generator().manual_seed(0)))
    strength = diffing.tolerated(model, direction, TEXTS, budget=0.5, most=16.0)
    text = pc.steering.Neutral(model, TEXTS)
    assert 0 < strength < 16
    assert text.measure([direction.add(strength)])["rise"] <= 0.5
    assert text.measure([direction.add(strength + 16 / 2**6)])["rise"] > 0.5


def test_what_cannot_be_compared_is_refused(model):
    with pytest.raises(DirectionError, match="1 of 2 texts have fewer than positions=9"):
        diffing.traces(model, model, [TEXTS[0], "A cat."], positions=9)
    with pytest.raises(DirectionError, match="different tokens"):
        diffing.traces(model, pc.load("organism:stdlib"), ["1 2 3"], positions=2)
    with pytest.raises(DirectionError, match="one position"):
        diffing.traces(model, model, TEXTS, positions=1)["resid_post.0"].direction()
