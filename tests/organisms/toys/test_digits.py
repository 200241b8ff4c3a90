import pytest
import torch

import patchclamp as pc
from patchclamp.organisms.toys import digits

NAMES = [digits.FAMILY + case for case in digits.CLASSIFIERS]


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_classifier_knows_the_digits(name):
    model, truth = pc.load(f"organism:{name}"), pc.organisms.truth(name)
    images, labels = truth.split("test")
    accuracy = (model.run({"inputs": images}).logits.argmax(-1) == labels).float().mean().item()
    assert accuracy >= 0.96
    assert accuracy == pytest.approx(pc.organisms.recipe(name)["test_accuracy"], abs=0.006)  # weights are halved


def test_the_split_is_fixed_and_its_parts_share_no_image():
    truth = pc.organisms.truth("digits:mlp-16")
    train, test = truth.split("train"), truth.split("test")
    assert (train[0].shape, test[0].shape) == ((1437, 8, 8), (360, 8, 8))
    assert (train[0].min(), train[0].max()) == (0, 1)
    assert torch.equal(pc.organisms.truth("digits:cnn-8").split("test")[0], test[0])
    counts = torch.bincount(torch.cat([train[1], test[1]]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # the data set's own


def test_samples_are_labelled_test_images():
    truth = pc.organisms.truth("digits:cnn-8")
    images, labels = truth.sample(50, seed=3)
    test_images, test_labels = truth.split("test")
    where = (images[:, None] == test_images).flatten(2).all(-1).float().argmax(1)
    assert torch.equal(test_images[where], images)
    assert torch.equal(test_labels[where], labels)
    assert torch.equal(truth.sample(50, seed=3)[0], images)
    assert not torch.equal(truth.sample(50, seed=4)[0], images)
    with pytest.raises(ValueError, match="there are 360 test images"):
        truth.sample(361)


def test_hidden_neurons_are_recorded_and_ablated():
    model = pc.load("organism:digits:mlp-64")
    images, labels = pc.organisms.truth("digits:mlp-64").split("test")
    run = model.run({"inputs": images}, record="module:activations.0")
    assert run["module:activations.0"].shape == (360, 64)
    silent = model.run({"inputs": images}, do=[pc.edit("module:activations.0", torch.zeros_like)])
    assert (silent.logits.argmax(-1) == labels).float().mean() < 0.2


@pytest.mark.parametrize("name", ["digits:mlp-16", "digits:cnn-8"])
def test_an_interrupted_recipe_goes_on_with_the_same_bits(name, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    losses = digits.train(name, whole, steps=12, progress=False)
    fit = digits.fit
    monkeypatch.setattr(digits, "fit", lambda *args, **kwargs: fit(*args, stop_at=7, **kwargs))
    digits.train(name, broken, steps=12, progress=False)
    monkeypatch.undo()
    assert digits.train(name, broken, steps=12, progress=False) == losses
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert digits.train(name, tmp_path / "other", seed=5, steps=12, progress=False) != losses
