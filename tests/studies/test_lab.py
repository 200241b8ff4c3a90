"""Fresh weights are fresh, seeded, and leave the world as it was; generators belong to one claim."""

import pytest
import torch
from torch import nn

import patchclamp as pc
from patchclamp.organisms import Truth
from patchclamp.studies import Lab, NotApplicable
from patchclamp.studies.lab import MODEL, SAMPLED, load_organism, open_lab, organism_truth, random_weights
from tiny import build


@pytest.fixture(scope="module")
def model():
    return pc.wrap(build("llama"), name="tiny")


def test_fresh_weights_keep_the_architecture_and_follow_the_seed(model):
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    state = torch.get_rng_state()
    one, same, other = (random_weights(model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(one.hf) is type(model.hf) and one.hf.config.to_dict() == model.hf.config.to_dict()
    assert one.hf is not model.hf and all(torch.equal(before[name], p) for name, p in model.hf.named_parameters())
    weight = "lm_head.weight"
    first, again, third = (m.hf.get_parameter(weight) for m in (one, same, other))
    assert torch.equal(first, again) and not torch.equal(first, third)
    assert not torch.equal(first, model.hf.get_parameter(weight))
    assert "random weights" in one.name and not one.hf.training


def test_any_module_with_reset_parameters_can_be_fresh_and_another_is_named():
    with torch.random.fork_rng():  # the weights of seed 0 are what the fresh ones are
        torch.manual_seed(7)
        net = pc.wrap(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    fresh = random_weights(net, 0)
    assert not torch.equal(fresh.hf[0].weight, net.hf[0].weight)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x * self.w

    with pytest.raises(TypeError, match=r"Odd.*no reset_parameters"):
        random_weights(pc.wrap(nn.Sequential(Odd())), 0)


def test_each_claim_draws_from_generators_of_its_own(model):
    lab = Lab(model, Truth("tiny"))
    a, again, b = lab.at("a"), lab.at("a"), lab.at("b")
    assert torch.equal(torch.rand(3, generator=a.generator), torch.rand(3, generator=again.generator))
    assert not torch.equal(torch.rand(3, generator=lab.at("a").generator), torch.rand(3, generator=b.generator))
    assert not torch.equal(torch.rand(3, generator=a.generator), torch.rand(3, generator=lab.at("a").generator))
    assert (lab.at("a").numpy.random(3) == again.numpy.random(3)).all()
    other = Lab(model, Truth("tiny"), seed=1).at("a")
    assert not torch.equal(torch.rand(3, generator=lab.at("a").generator), torch.rand(3, generator=other.generator))


def test_work_is_done_once_for_all_claims_and_does_not_depend_on_who_asks_first(model):
    calls = []

    def work(lab):
        calls.append(lab.scope)
        return torch.rand(2, generator=lab.generator)

    lab, turned = Lab(model, Truth("tiny")), Lab(model, Truth("tiny"))
    first, second = lab.at("a").once(work), lab.at("b").once(work)
    assert first is second and len(calls) == 1
    assert torch.equal(turned.at("b").once(work), first)


def test_a_lab_says_whether_its_model_was_used_also_in_work_that_was_done_before(model):
    def size(lab):
        return lab.model.d_model

    def drawn(lab):
        return torch.rand(1, generator=lab.generator)

    lab = Lab(model, Truth("tiny"))
    first, second, third = (lab.at(name) for name in "abc")
    assert first.once(size) == second.once(size) and third.once(drawn) is lab.once(drawn)
    assert first.used == second.used == {MODEL} and not third.used and not third.at("d").used
    third.of_seed(7).once(size)
    assert third.used == {MODEL} and third.of_seed(7).once(drawn) != third.once(drawn)


def test_texts_are_an_organisms_documents_and_else_what_the_model_writes():
    tales = load_organism("tales")
    known, mine = Lab(tales, organism_truth("tales")), Lab(tales, Truth(""))
    assert known.texts(3, 5) == [document.text for document in organism_truth("tales").documents(3, seed=5)]
    written = mine.texts(4, 5)
    assert len(written) == 4 and all(len(tales.tokenizer(text)["input_ids"]) > 4 for text in written)
    assert written == Lab(tales, Truth("")).texts(4, 5) and written != mine.texts(4, 6)
    assert mine.used == {MODEL, SAMPLED} and SAMPLED not in known.used
    with pytest.raises(NotApplicable, match="needs a model with a tokenizer"):
        Lab(pc.wrap(build("llama")), Truth("")).texts(2, 0)


def test_need_refuses_with_what_is_missing(model):
    lab = Lab(model, Truth("tiny"))
    lab.need(True, "anything")
    with pytest.raises(NotApplicable, match="needs a tokenizer"):
        lab.need(model.tokenizer, "a tokenizer")


def test_build_makes_a_seeded_network_and_leaves_the_global_generator(model):
    lab, state = Lab(model, Truth("tiny")).at("a"), torch.get_rng_state()
    one, two = (lab.build(model.hf.config) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.hf.lm_head.weight, two.hf.lm_head.weight)


def test_the_users_own_model_comes_with_an_empty_truth_and_an_organism_with_its_own(model):
    lab, name = open_lab("compiled:hand-induction", model=model, seed=0, full=False, out=None)
    assert lab.model is model and lab.truth == Truth("") and name == "tiny" and not lab.untrained
    lab, name = open_lab("tales", model="organism:compiled:hand-induction", seed=0, full=False, out=None)
    assert lab.truth.nodes and name == "compiled:hand-induction"
    lab, name = open_lab("compiled:hand-induction", model="random", seed=0, full=False, out=None)
    assert lab.untrained and lab.truth.nodes and name == "compiled:hand-induction with random weights"
    assert not torch.equal(lab.model.hf.lm_head.weight, lab.fresh().hf.lm_head.weight)
