import json
import time

import pytest
import torch
from safetensors.torch import load_file

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.tales import exam, grammar, vocabulary
from patchclamp.organisms.tales import train as tales
from patchclamp.organisms.tales_moe import routing, train

STAGES = (("loops", 0, 3), ("everything", 3, 6))
SMALL = train.Recipe(steps=6, stages=STAGES, layers=2, width=32, hidden=24, warmup=2)


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales-moe")


@pytest.fixture(scope="module")
def record():
    return organisms.recipe("tales-moe")


def test_it_loads_quickly_and_certifies(model):
    began = time.perf_counter()
    pc.load("organism:tales-moe")
    assert time.perf_counter() - began < 2
    assert model.certify().holds
    assert type(model.hf).__name__ == "MixtralForCausalLM" and model.hf.config.num_local_experts == 4


def test_it_does_what_it_is_meant_to_do(model, record):
    known = organisms.truth("tales-moe")
    scores = exam.examine(model, only=known.behaviours)
    assert set(known.behaviours) == set(train.MEANT)
    for name, score in scores.items():
        assert score.accuracy >= 0.9, name
        assert score.accuracy == pytest.approx(record["exam"][name], abs=0.01)


def test_the_routing_on_record_is_what_the_weights_do(model, record):
    for partition in ("genre", "code"):
        documents = routing.sample(partition, 4 * train.MEASURED_ON, seed=1)
        routes = routing.routes(model.hf, model.tokenizer, documents)
        found = routing.specialisation(
            routes, [routing.label(document, partition) for document in documents], permutations=20
        )
        for index, domain in enumerate(found.domains):
            expected = torch.tensor(record["routing"][partition]["usage"][domain], dtype=torch.float64)
            assert torch.allclose(found.usage[:, index], expected, atol=2e-3), domain


def test_every_expert_is_used_and_domains_are_told_apart(record):
    measured = record["routing"]["kind"]
    overall = torch.tensor(measured["overall"])
    assert (overall.sum(1) - 1).abs().max() < 1e-3 and (overall > 0.1).all()
    assert all(bits > null for bits, null in zip(measured["bits"], measured["bits_null_99"], strict=True))


def test_the_router_that_transformers_shows_is_the_site(model):
    document = grammar.documents(1, seed=0, kind="story")[0]
    routes = routing.routes(model.hf, model.tokenizer, [document])
    run = model.run(document.text, record=["router.*", "expert_index.*"])
    for layer in range(model.hf.config.num_hidden_layers):
        chosen = run[f"router.{layer}"][0].topk(2, dim=-1).indices
        assert chosen.sort(-1).values.equal(routes.experts[layer].sort(-1).values)
        assert run[f"expert_index.{layer}"][0].sort(-1).values.equal(chosen.sort(-1).values)


def test_the_loss_is_that_of_tales_plus_the_balance():
    tokenizer = vocabulary.build()
    network = train.untrained(SMALL, tokenizer)
    data = tales.step_batch(tokenizer, SMALL, 4)
    plain, weighted = (train.loss_of(network, data, balance).item() for balance in (0.0, 1.0))
    assert plain == pytest.approx(tales.loss_of(network, data).item(), abs=1e-5)  # pyright: ignore[reportArgumentType]
    assert 1.9 < weighted - plain < 4.1  # two of four experts for each token: 2 where all is even, 4 at most
    with torch.no_grad():
        for layer in network.model.layers:
            layer.mlp.gate.weight.zero_()
    even, uneven = (train.loss_of(network, data, balance).item() for balance in (0.0, 1.0))
    assert uneven - even == pytest.approx(2.0, abs=1e-4)


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "measured", lambda hf, tokenizer: {})
    whole = train.train("tales-moe", tmp_path / "whole", recipe=SMALL, progress=False)
    train.train("tales-moe", tmp_path / "parts", recipe=SMALL, stop_at=4, progress=False)
    assert train.train("tales-moe", tmp_path / "parts", recipe=SMALL, progress=False) == whole
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(one[key].equal(two[key]) for key in one)
    assert json.loads((tmp_path / "whole" / "recipe.json").read_text())["experts"] == 4


@pytest.mark.slow
def test_retraining_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "measured", lambda hf, tokenizer: {})
    recipe = train.Recipe(steps=120, stages=(("loops", 0, 10), ("everything", 60, 20)))
    losses = train.train("tales-moe", tmp_path, recipe=recipe, progress=False)
    assert sum(losses[-10:]) < 0.8 * sum(losses[60:70])
