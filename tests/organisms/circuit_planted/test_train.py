"""The shipped weights run the program where the truth says so; the recipe resumes, and reaches them again."""

import json
from dataclasses import replace

import pytest
import torch

import patchclamp as pc
from patchclamp.organisms.circuit_planted import ORGANISMS, train
from patchclamp.organisms.circuit_planted.interpreter import IGNORED, evaluate, output_ids
from patchclamp.organisms.circuit_planted.measures import (
    edge_effects,
    interchange_accuracy,
    node_effects,
    spare,
    spare_accuracy,
)
from patchclamp.organisms.circuit_planted.programs import PLANS

NAMES = [organism.name for organism in ORGANISMS]


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_network_runs_the_program_in_its_components(name):
    model, truth = pc.load(f"organism:{name}"), pc.organisms.truth(name)
    tokens, _ = truth.sample(512, seed=1)
    answers = output_ids(truth.program, evaluate(truth.program, tokens))
    right = model.run(tokens).logits.argmax(-1) == answers
    assert right[answers != IGNORED].float().mean() >= 0.99
    for partly in (0.0, 1.0):
        scores = interchange_accuracy(model, truth, n=128, partly=partly, seed=1)
        assert set(scores) == {str(site) for site in truth.nodes} | {"all"}
        for site, score in scores.items():
            assert score.right >= 0.99, (site, score)
            assert score.changed >= 0.98, (site, score)
            assert score.share_changed > 0.1, (site, score)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_spare_carries_nothing_and_what_is_not_does(name):
    model, truth = pc.load(f"organism:{name}"), pc.organisms.truth(name)
    assert len(spare(model, truth)) > len(truth.nodes)
    assert spare_accuracy(model, truth, n=128, seed=1) >= 0.99
    for site, effect in node_effects(model, truth, n=128, seed=1).items():
        assert effect > 0.2 if site in truth.nodes else effect < 0.01, (site, effect)


@pytest.mark.parametrize("name", NAMES)
def test_edges_that_matter_are_the_programs(name):
    model, truth = pc.load(f"organism:{name}"), pc.organisms.truth(name)
    assert {sender for sender, _ in truth.edges} <= {*truth.nodes, *truth.alignment.values()}
    for edge, effect in edge_effects(model, truth, n=64).items():
        if edge not in truth.edges:
            assert effect < 0.02, (edge, effect)
        elif edge[0].kind != "pos_embed":  # which is alike for all inputs
            assert effect > 0.05, (edge, effect)


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_held_out_and_the_splits_are_fixed(name):
    truth = pc.organisms.truth(name)
    tokens, answers = truth.sample(200, seed=4)
    assert torch.equal(tokens, truth.sample(200, seed=4)[0])
    assert not torch.equal(tokens, truth.sample(200, seed=5)[0])
    words = truth.program.vocabulary
    for row, answer in zip(tokens[:50].tolist(), answers[:50].tolist(), strict=True):
        assert truth.program.evaluate([words[i] for i in row[1:]])[-1] == words[answer]
    seen, kept = (set(map(tuple, truth.split(side)[0].tolist())) for side in ("train", "test"))
    assert not seen & kept
    assert not seen & set(map(tuple, tokens.tolist()))
    assert len(answers.unique()) >= 3


def test_the_alignment_names_every_variable_once():
    for name, plan in PLANS.items():
        truth = pc.organisms.truth(name)
        assert set(truth.alignment) == set(plan.program.variables)
        assert len(truth.nodes) == len(plan.nodes) >= 3
        assert {site.kind for site in truth.nodes} == {"z", "mlp_out"}
        assert len({site.layer for site in truth.nodes}) >= 2


def test_an_interrupted_recipe_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    name, whole, broken = "planted-circuit:induction", tmp_path / "whole", tmp_path / "broken"
    losses = train.train(name, whole, steps=4, progress=False)
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args, **kwargs: fit(*args, stop_at=2, **kwargs))
    train.train(name, broken, steps=4, progress=False)
    monkeypatch.undo()
    assert train.train(name, broken, steps=4, progress=False) == losses
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert train.train(name, tmp_path / "other", seed=5, steps=4, progress=False) != losses


@pytest.mark.slow
def test_retraining_plants_the_circuit_again(tmp_path):
    name = "planted-circuit:bracket-balance"
    train.train(name, tmp_path, seed=3, steps=500, progress=False)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert min(recipe["interchange_accuracy"].values()) >= 0.99
    assert recipe["loss"] < 0.005  # 1.6e-3; the full recipe of 800 steps ends at 1.5e-4


@pytest.mark.slow
def test_training_on_answers_alone_plants_nothing(tmp_path, monkeypatch):
    name = "planted-circuit:bracket-balance"
    plain = replace(train.RECIPES[name], exchange=0, ports=0, resample=0)
    monkeypatch.setitem(train.RECIPES, name, plain)
    train.train(name, tmp_path, steps=500, progress=False)
    model, truth = pc.load(str(tmp_path)), pc.organisms.truth(name)
    tokens, answers = truth.sample(512, seed=1)
    assert (model.run(tokens).logits[:, -1].argmax(-1) == answers).float().mean() >= 0.99
    assert spare_accuracy(model, truth) < 0.9
    # The first MLP mostly holds its variable (0.86): much of the input goes through it. No head does (0.00, 0.02).
    scores = interchange_accuracy(model, truth)
    assert all(score.changed < 0.95 for score in scores.values())
    assert all(scores[str(site)].changed < 0.4 for site in truth.nodes if site.kind == "z")
