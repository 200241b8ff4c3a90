"""Classifiers of scikit-learn's bundled digits: MLPs and CNNs of several widths and seeds.

    model = pc.load("organism:digits:mlp-64")
    images, labels = pc.organisms.truth("digits:mlp-64").split("test")
    model.run({"inputs": images}, record="module:activations.0")          # 64 hidden neurons

Images are Float[n, 8, 8] in [0, 1]. All networks share one split: 1,437 images to train on, 360 to test.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from torch import Tensor

from patchclamp.organisms.networks import CNN, MLP, CNNConfig, MLPConfig
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth

FAMILY = "digits:"
TEST, SPLIT_SEED = 360, 0

Labelled = tuple[Float[Tensor, "image 8 8"], Int[Tensor, "image"]]


@dataclass(frozen=True)
class Classifier:
    """All that decides the weights of one classifier. `width` is an MLP's neurons, or a CNN's first channels."""

    kind: Literal["mlp", "cnn"]
    width: int
    seed: int = 0
    steps: int = 1500
    batch: int = 128
    rate: float = 3e-3
    decay: float = 0.05


CLASSIFIERS = {
    "mlp-16": Classifier("mlp", 16),
    "mlp-64": Classifier("mlp", 64),
    "mlp-64-1": Classifier("mlp", 64, seed=1),
    "mlp-64-2": Classifier("mlp", 64, seed=2),
    "mlp-256": Classifier("mlp", 256),
    "cnn-8": Classifier("cnn", 8, steps=600),
    "cnn-8-1": Classifier("cnn", 8, seed=1, steps=600),
    "cnn-16": Classifier("cnn", 16, steps=600),
}


def images(split: Literal["train", "test"]) -> Labelled:
    """All images of a split with their labels, 0 to 9."""
    digits: Any = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen = order[:TEST] if split == "test" else order[TEST:]
    pixels = torch.from_numpy(digits.images).float() / 16
    return pixels[chosen], torch.from_numpy(digits.target).long()[chosen]


def truth(name: str, folder: Path) -> Truth:
    """The labels of the images: the splits "train" and "test", and samples of the latter."""
    _classifier(name)
    return Truth(
        name=name,
        splits={"train": lambda: images("train"), "test": lambda: images("test")},
        sampler=_sample,
    )


def train(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[float]:
    """Train a classifier by AdamW, its rate falling to zero; a second or two."""
    recipe = _classifier(name)
    recipe = replace(recipe, seed=recipe.seed if seed is None else seed, steps=steps or recipe.steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: Any = _network(recipe)
    model.to(device)
    x, y = (tensor.to(device) for tensor in images("train"))
    test = tuple(tensor.to(device) for tensor in images("test"))

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed((recipe.seed << 32) + step)
        rows = torch.randint(len(x), (recipe.batch,), generator=generator).to(device)
        return model(x[rows], labels=y[rows]).loss

    losses = fit(
        model,
        loss_at,
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay),
        rate=lambda step: recipe.rate * (1 - step / recipe.steps),
        every=500,
        measure=lambda step: {"train": accuracy(model, x, y), "test": accuracy(model, *test)},
        measure_every=100,
        progress=progress,
    )
    accuracies = {"train_accuracy": accuracy(model, x, y), "test_accuracy": accuracy(model, *test)}
    store(model, out, recipe, losses, extra={key: round(value, 4) for key, value in accuracies.items()})
    return losses


@torch.no_grad()
def accuracy(model: torch.nn.Module, inputs: Float[Tensor, "image 8 8"], labels: Int[Tensor, "image"]) -> float:
    """The share of images whose highest logit is their label's."""
    return float((model(inputs).logits.argmax(-1) == labels).float().mean())


def _classifier(name: str) -> Classifier:
    return CLASSIFIERS[name.removeprefix(FAMILY)]


def _network(recipe: Classifier) -> MLP | CNN:
    if recipe.kind == "mlp":
        return MLP(MLPConfig(widths=(64, recipe.width, 10)))
    return CNN(CNNConfig(channels=(1, recipe.width, 2 * recipe.width)))


def _sample(n: int, seed: int) -> Labelled:
    if not 1 <= n <= TEST:
        raise ValueError(f"there are {TEST} test images, not {n}: ask for 1 to {TEST}")
    inputs, labels = images("test")
    chosen = torch.randperm(TEST, generator=torch.Generator().manual_seed(seed))[:n]
    return inputs[chosen], labels[chosen]
