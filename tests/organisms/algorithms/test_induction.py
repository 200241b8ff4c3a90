"""Induction: heads with the scores, found on the shipped weights, carry the behaviour; and they formed at once."""

import pytest
import torch

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.algorithms import induction
from patchclamp.organisms.algorithms.induction import (
    BEGIN,
    LAGS,
    LENGTH,
    VOCABULARY,
    head_scores,
    matches,
    repeated,
    repeated_loss,
)
from patchclamp.organisms.algorithms.transformer import transformer

NAME = "induction"


@pytest.fixture(scope="module")
def model():
    return pc.load(f"organism:{NAME}")


@pytest.fixture(scope="module")
def truth():
    return organisms.truth(NAME)


def accuracy(model, truth, do=()):
    tokens, answers = truth.sample(256, seed=5)
    last = (tokens != BEGIN).sum(1)  # BEGIN is at the front, and pads
    logits = model.run(tokens, do=do).logits[torch.arange(256), last]
    return float((logits.argmax(-1) == answers).float().mean())


def test_it_continues_what_repeats_and_the_rest_is_chance(model):
    measured = repeated_loss(model.hf, *repeated(128, seed=999))
    assert measured["repeated_accuracy"] >= 0.95
    assert measured["fresh_loss"] >= 0.95 * torch.tensor(VOCABULARY - 1.0).log().item()


def test_induction_heads_match_prefixes(model):
    scores = head_scores(model, repeated(128, seed=999)[0])
    assert scores["prefix_matching"].max() >= 0.9
    assert scores["prefix_matching"][1].max() == scores["prefix_matching"].max()
    assert scores["previous_token"][0].max() >= 0.5


def test_they_do_so_at_lags_that_training_never_had(model):
    tokens, _ = repeated(128, seed=3, lags=(LAGS[1] + 1, LAGS[1] + 10))
    assert head_scores(model, tokens)["prefix_matching"].max() >= 0.6


def test_random_weights_match_nothing():
    model = pc.wrap(transformer(vocabulary=VOCABULARY, layers=2, heads=4, width=64, hidden=0, context=96, seed=0))
    scores = head_scores(model, repeated(64, seed=0)[0])
    assert scores["prefix_matching"].max() < 0.2 and scores["previous_token"].max() < 0.2


def test_the_truth_names_heads_in_both_layers_and_the_edges_between_them(truth):
    layers = {node.layer for node in truth.nodes}
    assert layers == {0, 1} and all(node.kind == "z" for node in truth.nodes)
    assert all(receiver.kind in ("k", "logits") for _, receiver in truth.edges)
    assert {sender for sender, _ in truth.edges} == truth.nodes


def test_the_named_heads_of_each_layer_are_needed_where_it_repeats(model, truth):
    assert accuracy(model, truth) >= 0.95
    for layer in (0, 1):
        named = [node for node in truth.nodes if node.layer == layer]
        assert accuracy(model, truth, do=[pc.ablate(node, to="mean") for node in named]) < 0.25
        # the control: the same heads, where there is nothing to match yet
        assert accuracy(model, truth, do=[pc.ablate(node, to="mean", pos=[0, 1]) for node in named]) > 0.85


def test_the_heads_formed_at_once():
    log = organisms.log(NAME)
    loss = [row["repeated_loss"] for row in log]
    chance = torch.tensor(float(VOCABULARY - 1)).log().item()
    plateau = next(row["step"] for row in log if row["repeated_loss"] < 0.75 * chance)
    formed = next(row["step"] for row in log if row["repeated_loss"] < 0.25 * chance)
    assert loss[0] > 0.9 * chance and loss[-1] < 0.1 * chance
    assert formed - plateau < plateau  # the fall takes less time than the plateau before it
    before = max(row["prefix_matching"] for row in log if row["step"] <= plateau / 2)
    assert before < 0.2 and log[-1]["prefix_matching"] >= 0.9


def test_checkpoints_show_the_phase_change():
    steps = organisms.checkpoints(NAME)
    assert len(steps) >= 20
    first, last = (pc.load(f"organism:{NAME}@{step}") for step in (steps[0], steps[-1]))
    data = repeated(64, seed=999)
    assert repeated_loss(first.hf, *data)["repeated_accuracy"] < 0.1
    assert repeated_loss(last.hf, *data)["repeated_accuracy"] >= 0.95
    assert head_scores(first, data[0])["prefix_matching"].max() < 0.2


def test_it_has_no_mlp(model):
    assert model.run(repeated(4, seed=0)[0], record="mlp_out.*")["mlp_out.1"].abs().max() == 0


def test_rows_repeat_after_lags_of_their_own():
    tokens, lag = repeated(300, seed=0)
    assert tokens.shape == (300, LENGTH) and set(lag.tolist()) == set(range(LAGS[0], LAGS[1] + 1))
    for row, gap in zip(tokens[:50], lag[:50].tolist(), strict=True):
        assert row[0] == BEGIN and (row[1 + gap :] == row[1:-gap]).all() and (row[1:] != BEGIN).all()


def test_matches_are_what_follows_an_earlier_occurrence():
    where = matches(torch.tensor([[0, 5, 7, 5, 9, 5]]))[0]
    assert where.nonzero().tolist() == [[3, 2], [5, 2], [5, 4]]


def test_sampled_answers_continue_the_repetition(truth):
    tokens, answers = truth.sample(200, seed=1)
    whole, lag = repeated(200, seed=1)
    last = (tokens != BEGIN).sum(1)
    rows = torch.arange(200)
    assert (whole[rows, last + 1] == answers).all() and (whole[rows, last + 1 - lag] == answers).all()
    assert (last + 1 >= lag + 2).all()


def test_training_goes_on_with_the_same_bits(monkeypatch, tmp_path):
    whole = induction.train(NAME, tmp_path / "whole", steps=6, progress=False)
    fit = induction.fit
    monkeypatch.setattr(induction, "fit", lambda *given, **options: fit(*given, **options, stop_at=3))
    assert induction.train(NAME, tmp_path / "parts", steps=6, progress=False) == whole[:3]
    monkeypatch.undo()
    assert induction.train(NAME, tmp_path / "parts", steps=6, progress=False) == whole
    file = "model.safetensors"
    assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


@pytest.mark.slow
def test_the_recipe_forms_the_heads_again(tmp_path):
    losses = induction.train(NAME, tmp_path, progress=False)
    assert sum(losses[-50:]) / 50 == pytest.approx(organisms.recipe(NAME)["loss"], rel=0.05)
    assert head_scores(pc.load(str(tmp_path)), repeated(64, seed=9)[0])["prefix_matching"].max() >= 0.9
