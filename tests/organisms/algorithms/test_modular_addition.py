"""Addition modulo a prime: the shipped weights grokked it with a few frequencies, and the recipe is what made them."""

import json

import pytest
import torch

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.algorithms import fourier, modular_addition
from patchclamp.organisms.algorithms.modular_addition import (
    RECIPES,
    logit_table,
    pair_loss,
    split,
    untrained,
)
from patchclamp.organisms.algorithms.transformer import last_logits

NAMES = tuple(RECIPES)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return pc.load(f"organism:{name}")


def test_it_adds_pairs_that_training_never_contained(name, model):
    tokens, answers = organisms.truth(name).split("test")
    assert (model.run(tokens).logits[:, -1].argmax(-1) == answers).float().mean() >= 0.99


def test_key_frequencies_explain_the_variance_of_the_logits(name, model):
    shares = fourier.cosine_shares(logit_table(model.hf))
    keys = fourier.key_frequencies(shares)
    assert 1 <= len(keys) <= 8 and shares[keys - 1].sum() >= 0.95
    assert keys.tolist() == organisms.recipe(name)["key_frequencies"]


def test_random_weights_have_no_key_frequencies(name):
    assert fourier.cosine_shares(logit_table(untrained(RECIPES[name]))).sum() < 0.01


def test_without_its_key_directions_it_adds_no_more_and_without_as_many_others_it_does(name, model):
    truth = organisms.truth(name)
    tokens, answers = truth.sample(512)
    keys = torch.stack(list(truth.features.values()))
    others = torch.randn(keys.shape, generator=torch.Generator().manual_seed(0))
    others = others - others @ torch.linalg.pinv(keys) @ keys  # away from the key directions

    def accuracy(directions):
        basis = torch.linalg.qr(directions.T).Q
        without = pc.edit("embed", lambda x: x - x @ basis @ basis.T, pos=[0, 1])
        return (model.run(tokens, do=[without]).logits[:, -1].argmax(-1) == answers).float().mean()

    assert accuracy(keys) < 0.1
    assert accuracy(others) > 3 * accuracy(keys) + 0.2


def test_the_split_is_by_unordered_pair_and_complete(name):
    train, test = split(RECIPES[name])
    p = RECIPES[name].p
    assert (torch.cat([train, test]).diff(dim=1) <= 0).all()
    assert len(torch.cat([train, test]).unique(dim=0)) == len(train) + len(test) == p * (p + 1) // 2
    assert len(train) == round(RECIPES[name].share * p * (p + 1) / 2)
    tokens, answers = organisms.truth(name).split("test")
    assert len(tokens) == 2 * len(test) - (test[:, 0] == test[:, 1]).sum()
    assert (answers == tokens[:, :2].sum(1) % p).all() and (tokens[:, 2] == p).all()


def test_samples_are_held_out(name):
    _, test = split(RECIPES[name])
    tokens, answers = organisms.truth(name).sample(200, seed=1)
    held = {tuple(pair) for pair in test.tolist()}
    assert all(tuple(sorted(pair, reverse=True)) in held for pair in tokens[:, :2].tolist())
    assert (answers == tokens[:, :2].sum(1) % RECIPES[name].p).all()


def test_the_quick_logits_and_loss_are_those_of_the_standard_forward():
    network = untrained(RECIPES["modular-addition:59"]).double()
    pairs = split(RECIPES["modular-addition:59"])[0][:300]
    both = torch.cat([pairs, pairs[pairs[:, 0] != pairs[:, 1]].flip(1)])
    standard = network(modular_addition.prompts(both, 59)).logits[:, -1]
    assert torch.allclose(last_logits(network, modular_addition.prompts(both, 59)), standard, atol=1e-6)
    loss, accuracy = pair_loss(network, pairs)
    answers = both.sum(1) % 59
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(standard, answers).item(), rel=1e-6)
    assert accuracy == pytest.approx((standard.argmax(-1) == answers).double().mean().item())


def test_it_knew_the_training_pairs_by_heart_long_before_it_could_add(name):
    log = organisms.log(name)
    by_heart = next(row["step"] for row in log if row["train_accuracy"] >= 0.99)
    added = next(row["step"] for row in log if row["test_accuracy"] >= 0.99)
    assert log[0]["test_accuracy"] < 0.05 and log[-1]["test_accuracy"] >= 0.99
    assert added >= 2 * by_heart
    assert log[-1]["gini"] - log[0]["gini"] >= 0.3
    assert {"train_loss", "test_loss", "weight_norm"} <= log[0].keys()


def test_checkpoints_show_the_transition(name):
    steps = organisms.checkpoints(name)
    assert len(steps) >= (61 if name == "modular-addition" else 21)
    _, test = split(RECIPES[name])
    log = {row["step"]: row for row in organisms.log(name)}
    for step, low, high in ((steps[0], 0.0, 0.05), (steps[-1], 0.99, 1.0)):
        _, accuracy = pair_loss(pc.load(f"organism:{name}@{step}").hf, test)
        assert low <= accuracy <= high
        assert accuracy == pytest.approx(log[step]["test_accuracy"], abs=0.01)


def test_training_goes_on_with_the_same_bits(monkeypatch, tmp_path):
    whole = modular_addition.train("modular-addition:59", tmp_path / "whole", steps=12, progress=False)
    fit = modular_addition.fit
    monkeypatch.setattr(modular_addition, "fit", lambda *given, **options: fit(*given, **options, stop_at=5))
    assert modular_addition.train("modular-addition:59", tmp_path / "parts", steps=12, progress=False) == whole[:5]
    monkeypatch.undo()
    assert modular_addition.train("modular-addition:59", tmp_path / "parts", steps=12, progress=False) == whole
    for file in ("model.safetensors", "checkpoints/000012.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


@pytest.mark.slow
def test_the_recipe_groks_again(tmp_path):
    losses = modular_addition.train("modular-addition:59", tmp_path, progress=False)
    again, shipped = json.loads((tmp_path / "recipe.json").read_text()), organisms.recipe("modular-addition:59")
    assert again["test_accuracy"] >= 0.99 and again["explained"] >= 0.95
    assert sum(losses[-50:]) / 50 == pytest.approx(shipped["loss"], rel=0.05)
