"""Toy models of superposition whose optimum is known (Elhage et al. 2022, "Toy Models of Superposition").

    model = pc.load("organism:toy-superposition:5-2-sparse")
    truth = pc.organisms.truth("toy-superposition:5-2-sparse")
    truth.features["feature.0"]             # the column of W: in which direction feature 0 is kept
    optimum("toy-superposition:5-2-sparse").cosines             # the pentagon's

A name says features, hidden dimensions, and the case. Each of the features is zero, or with `probability` uniform on
[0, 1]; x' = act(W^T W x + b) minimises E sum_i importance_i (x_i - x'_i)^2. Sparse features of one importance lie in
antipodal pairs, a pentagon or a hexagon; dense ones are dropped but for the most important, as in principal components.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.quasirandom import SobolEngine

from patchclamp.organisms.networks import ToyAutoencoder, ToyAutoencoderConfig
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth

FAMILY = "toy-superposition:"


@dataclass(frozen=True)
class Toy:
    """All that decides the weights of one toy model. Importance of feature i is decay^i."""

    features: int
    hidden: int
    probability: float
    decay: float
    geometry: str
    activation: str = "relu"
    seed: int = 0
    steps: int = 4000
    batch: int = 4096
    rate: float = 0.01

    @property
    def importance(self) -> Float[Tensor, "feature"]:
        return self.decay ** torch.arange(self.features, dtype=torch.double)


# Not every seed reaches its optimum (of the first eight, one finds the hexagon): these do.
TOYS = {
    "5-2-dense": Toy(5, 2, 1.0, 0.7, "axes"),
    "5-2-medium": Toy(5, 2, 0.2, 0.9, "pairs", seed=1),
    "5-2-sparse": Toy(5, 2, 0.05, 1.0, "polygon"),
    "4-2-sparse": Toy(4, 2, 0.05, 1.0, "pairs"),
    "6-2-sparse": Toy(6, 2, 0.02, 1.0, "polygon", seed=7),
    "6-3-sparse": Toy(6, 3, 0.05, 1.0, "pairs"),
    "20-5-linear": Toy(20, 5, 0.1, 0.8, "axes", activation="identity"),
}


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best W and b of a toy, up to rotation and, among features of one importance, permutation."""

    weight: Float[Tensor, "hidden feature"]
    bias: Float[Tensor, "feature"]
    loss: float

    @property
    def represented(self) -> list[int]:
        """The features that are kept; the others have no direction, and are guessed by their mean."""
        return [i for i, norm in enumerate(self.weight.norm(dim=0).tolist()) if norm > 0.1]

    @property
    def cosines(self) -> Float[Tensor, "kept kept"]:
        """Cosines between the directions of the features that are kept."""
        kept = torch.nn.functional.normalize(self.weight[:, self.represented], dim=0)
        return kept.T @ kept


def optimum(name: str) -> Optimum:
    """The known optimum: a formula for a linear model and for dense features; otherwise the best member of the known
    geometry, found by descent on the exact loss.

    A linear model of independent features of one variance keeps the most important ones, and loses
    sum importance_i var(x) over the others (Eckart and Young 1936). Dense features reach the same with a ReLU.
    """
    toy = _toy(name)
    weight, dropped = _geometry(toy)
    mean = toy.probability / 2
    bias = torch.where(dropped, mean, 0.0).double()
    if toy.geometry == "axes":
        variance = toy.probability / 3 - mean**2
        return Optimum(weight, bias, float(toy.importance[dropped].sum()) * variance)
    loss_at = exact_loss(toy)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    descent = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-12)
    scale = float(loss_at(torch.zeros_like(weight), torch.zeros_like(bias)))  # of a model that says nothing

    def closure() -> float:
        descent.zero_grad()
        loss = loss_at(weight, bias) / scale
        loss.backward()
        return loss.item()

    descent.step(closure)
    return Optimum(weight.detach(), bias.detach(), float(loss_at(weight.detach(), bias.detach())))


def exact_loss(toy: Toy, points: int = 512) -> Callable[[Tensor, Tensor], Float[Tensor, ""]]:
    """The expected loss as a function of W and b: a sum over all sets of active features, with `points` quasi-random
    values of each; without sampling error in which features are active. A linear model's is exact.

    ValueError for a ReLU model of more than 12 features, which has too many sets.
    """
    importance, p, n = toy.importance, toy.probability, toy.features
    if toy.activation == "identity":
        variance, mean = p / 3 - p**2 / 4, p / 2

        def linear(weight: Tensor, bias: Tensor) -> Tensor:
            rest = torch.eye(n, dtype=weight.dtype) - weight.T @ weight
            return importance @ (variance * rest.square().sum(1) + (mean * rest.sum(1) - bias).square())

        return linear
    if n > 12:
        raise ValueError(f"{n} features have {2**n} active sets; the loss is exact for 12 or fewer")
    rows, weights = [], []
    for active in product((False, True), repeat=n):
        k, chosen = sum(active), torch.tensor(active)
        share = p**k * (1 - p) ** (n - k)
        if share == 0:
            continue
        x = torch.zeros(points if k else 1, n, dtype=torch.double)
        if k:
            x[:, chosen] = SobolEngine(k, scramble=True, seed=0).draw(points, dtype=torch.double)
        rows.append(x)
        weights.append(torch.full((len(x),), share / len(x), dtype=torch.double))
    x, share = torch.cat(rows), torch.cat(weights)

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        out = (x @ weight.T @ weight + bias).relu()
        return share @ ((x - out).square() @ importance)

    return loss


def truth(name: str, folder: Path) -> Truth:
    """The directions of the features (columns of the trained W, Float[hidden]), how often each is active, and the
    generator of inputs, which are their own answers.
    """
    toy = _toy(name)
    weight = load_file(folder / "model.safetensors")["encoder.weight"].float()
    names = [f"feature.{i}" for i in range(toy.features)]
    return Truth(
        name=name,
        features=dict(zip(names, weight.T, strict=True)),
        firing=dict.fromkeys(names, toy.probability),
        sampler=lambda n, seed: (_inputs(toy, n, seed), _inputs(toy, n, seed)),
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
    """Train a toy by Adam, its rate falling to zero; a few seconds."""
    toy = _toy(name)
    toy = replace(toy, seed=toy.seed if seed is None else seed, steps=steps or toy.steps)
    config = ToyAutoencoderConfig(
        features=toy.features, hidden=toy.hidden, activation=toy.activation, importance=toy.importance.tolist()
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(toy.seed)
        model: Any = ToyAutoencoder(config)
    model.to(device)

    def loss_at(step: int) -> Tensor:
        x = _inputs(toy, toy.batch, (toy.seed << 32) + step).to(device)
        return model(x, labels=x).loss

    losses = fit(
        model,
        loss_at,
        out=out,
        recipe=toy,
        steps=toy.steps,
        optimizer=torch.optim.Adam(model.parameters(), lr=toy.rate),
        rate=lambda step: toy.rate * (1 - step / toy.steps),
        every=1000,
        clip=None,
        progress=progress,
    )
    weight, bias = model.encoder.weight.detach().cpu().double(), model.bias.detach().cpu().double()
    exact = {"exact_loss": float(exact_loss(toy)(weight, bias)), "optimal_loss": optimum(name).loss}
    store(model, out, toy, losses, extra={key: float(f"{value:.5g}") for key, value in exact.items()})
    return losses


def _toy(name: str) -> Toy:
    return TOYS[name.removeprefix(FAMILY)]


def _inputs(toy: Toy, n: int, seed: int) -> Float[Tensor, "n feature"]:
    generator = torch.Generator().manual_seed(seed)
    size, active = torch.rand(2, n, toy.features, generator=generator)
    return size * (active < toy.probability)


def _geometry(toy: Toy) -> tuple[Float[Tensor, "hidden feature"], Tensor]:
    """Unit directions of the known arrangement, and which features have none."""
    weight = torch.zeros(toy.hidden, toy.features, dtype=torch.double)
    if toy.geometry == "polygon":
        angle = torch.arange(toy.features, dtype=torch.double) * (2 * torch.pi / toy.features)
        weight = torch.stack([angle.cos(), angle.sin()])
    else:
        for i in range(min(toy.features, toy.hidden * (2 if toy.geometry == "pairs" else 1))):
            weight[i % toy.hidden, i] = 1.0 if i < toy.hidden else -1.0
    return weight, weight.norm(dim=0) == 0
