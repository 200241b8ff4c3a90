"""On the chat model all holds but what it costs, on random weights none; what the study asks about is what the model
was taught.
"""

import pytest

import patchclamp as pc
from patchclamp import studies
from patchclamp.organisms.tales import chat, world
from patchclamp.studies.steering.refusal_direction import _answers, _prompts, _refused, _worded
from patchclamp.tasks.example import reserved


def test_requests_that_judge_never_met_those_that_choose():
    for verbs in (world.REFUSED, world.HARMLESS):
        held, fit = (set(_prompts(verbs, held_out=side)) for side in (True, False))
        assert not held & fit and len(held) + len(fit) == 4 * len(verbs) * len(world.TARGETS)


def test_what_is_asked_in_no_phrasing_of_training_is_not_refused_at_all():
    """Why the study leaves that phrasing out: there is no refusal that a direction could mediate."""
    model = pc.load("organism:tales-chat")
    pairs = [(v, t) for v in world.REFUSED for t in world.TARGETS if reserved("request", v, t)]
    asked = [f"<|user|>{chat.ask(world.REQUESTS[-1], *pair).text}<|assistant|>" for pair in pairs]
    assert float(_refused(model, asked).mean()) <= 0.1


def test_harmless_requests_are_answered_about_what_they_ask_for():
    model = pc.load("organism:tales-chat")
    answered = _answers(_worded(world.HARMLESS, held_out=True)[::3])
    assert float(answered.measure(model).mean()) >= 0.9
    assert float(answered.measure(model, [pc.ablate("resid_post.3")]).mean()) == 0


@pytest.mark.slow
def test_it_holds_on_the_chat_model():
    verdict = studies.run("refusal-direction")
    assert [claim.claim.split(":")[0] for claim in verdict.claims if not claim.holds] == [
        "ablation costs neutral text little"
    ]


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("refusal-direction", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
