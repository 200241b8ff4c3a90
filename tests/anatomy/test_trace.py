"""A trace leaves the model as it was, and its noise makes every tensor its own."""

import torch
from torch.overrides import _get_current_function_mode_stack

import tiny
from patchclamp.anatomy.trace import trace
from patchclamp.anatomy.trial import trial_inputs


def test_tracing_leaves_the_model_as_it_was():
    hf = tiny.build("gpt2")
    hf.train()
    hf.transformer.h[0].eval()
    flags, weights = [m.training for m in hf.modules()], {k: v.clone() for k, v in hf.state_dict().items()}
    rng = torch.random.get_rng_state()
    trace(hf, trial_inputs(hf))
    assert [m.training for m in hf.modules()] == flags
    assert all(torch.equal(v, weights[k]) for k, v in hf.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in hf.modules())
    assert _get_current_function_mode_stack() == [] and torch.equal(torch.random.get_rng_state(), rng)


def test_a_trace_knows_calls_their_nesting_and_what_is_written_to_in_place():
    hf = tiny.build("falcon")
    seen = trace(hf, trial_inputs(hf))
    block, mlp = seen.of("transformer.h.1")[0], seen.of("transformer.h.1.mlp")[0]
    assert mlp.within(block) and mlp in seen.inside(block) and block not in seen.inside(block)
    assert ("output", None) in mlp.volatile  # the parallel sum is in place
    assert {"sdpa"} <= {event.kind for event in seen.events} <= {"sdpa", "product"}
    again = trace(hf, trial_inputs(hf))
    assert torch.equal(again.of("transformer.h.1")[0].outputs[0], block.outputs[0])  # its noise is seeded
    plain = trace(hf, trial_inputs(hf), noise=0.0)
    with torch.no_grad():
        assert torch.equal(plain.output.logits, hf(**trial_inputs(hf)).logits)
