"""Sparse parity: the shipped networks generalise, the later the more junk there is, and by the bits that count."""

import pytest
import torch

import patchclamp as pc
from patchclamp import organisms
from patchclamp.organisms.algorithms import sparse_parity
from patchclamp.organisms.algorithms.sparse_parity import BITS, RECIPES, counting_share, examples, parity

NAMES = tuple(RECIPES)


def accuracy(model, name, side):
    inputs, classes = organisms.truth(name).split(side)
    return float((model.run({"inputs": inputs}).logits.argmax(-1) == classes).float().mean())


def crossings(name):
    """The steps at which training and test accuracy first reach 95 %."""
    log = organisms.log(name)
    return [next(row["step"] for row in log if row[f"{side}_accuracy"] >= 0.95) for side in ("train", "test")]


@pytest.mark.parametrize("name", NAMES)
def test_it_generalises_to_junk_that_training_never_contained(name):
    model = pc.load(f"organism:{name}")
    assert accuracy(model, name, "train") >= 0.99 and accuracy(model, name, "test") >= 0.99


def test_the_more_junk_the_longer_from_memory_to_rule():
    gaps = []
    for name in ("sparse-parity:0", "sparse-parity:12", "sparse-parity"):
        by_heart, ruled = crossings(name)
        gaps.append(ruled - by_heart)
    assert gaps == sorted(gaps) and gaps[0] <= 25
    assert gaps[2] >= 5 * max(gaps[1], 25)


@pytest.mark.parametrize("name", ["sparse-parity", "sparse-parity:12"])
def test_its_weights_come_to_lie_on_the_bits_that_count(name):
    first, last = (pc.load(f"organism:{name}@{organisms.checkpoints(name)[end]}").hf for end in (0, -1))
    assert counting_share(first) < 2 * BITS / (BITS + RECIPES[name].junk)
    assert counting_share(last) > 0.5


def test_checkpoints_show_memory_and_then_the_rule():
    name = "sparse-parity"
    steps = organisms.checkpoints(name)
    assert len(steps) >= 20
    by_heart, ruled = crossings(name)
    between = [step for step in steps if by_heart <= step < 0.8 * ruled]
    start, memory, rule = (pc.load(f"organism:{name}@{step}") for step in (steps[0], between[0], steps[-1]))
    assert accuracy(start, name, "test") < 0.7
    assert accuracy(memory, name, "train") >= 0.95 and accuracy(memory, name, "test") < 0.8
    assert accuracy(rule, name, "train") >= 0.99 and accuracy(rule, name, "test") >= 0.99


def test_random_weights_are_at_chance():
    name = "sparse-parity"
    model = pc.wrap(sparse_parity.untrained(RECIPES[name]))
    assert 0.4 < accuracy(model, name, "test") < 0.6


@pytest.mark.parametrize("name", NAMES)
def test_the_sides_are_drawn_apart(name):
    train, classes = examples(RECIPES[name], "train")
    test, _ = examples(RECIPES[name], "test")
    assert train.shape == (600, BITS + RECIPES[name].junk) and len(test) == 2000
    assert (parity(train) == classes).all() and 0.4 < classes.float().mean() < 0.6
    if RECIPES[name].junk == 24:
        assert not {tuple(row) for row in train.tolist()} & {tuple(row) for row in test.tolist()}
    inputs, answers = organisms.truth(name).sample(50, seed=2)
    assert (parity(inputs) == answers).all()


def test_the_features_are_the_bits_that_count():
    for name in NAMES:
        features = torch.stack(list(organisms.truth(name).features.values()))
        assert features.argmax(1).tolist() == [0, 1, 2] and features.shape == (BITS, BITS + RECIPES[name].junk)


def test_training_goes_on_with_the_same_bits(monkeypatch, tmp_path):
    name = "sparse-parity:12"
    whole = sparse_parity.train(name, tmp_path / "whole", steps=12, progress=False)
    fit = sparse_parity.fit
    monkeypatch.setattr(sparse_parity, "fit", lambda *given, **options: fit(*given, **options, stop_at=5))
    assert sparse_parity.train(name, tmp_path / "parts", steps=12, progress=False) == whole[:5]
    monkeypatch.undo()
    assert sparse_parity.train(name, tmp_path / "parts", steps=12, progress=False) == whole
    for file in ("model.safetensors", "checkpoints/000012.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
