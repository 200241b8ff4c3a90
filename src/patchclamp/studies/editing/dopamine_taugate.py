"""Dopamine: Brain Modes, Not Brains.

A network that has learnt two modes of a task does better in one of them once each hidden unit has a gain and a
threshold learned on that mode alone, while all weights stay: a mode is put on and taken off. Here the modes are digits
as they are and turned by 45 degrees, the networks are MLPs of two hidden layers of 64 trained on both (256 numbers are
learned), and the same gains and thresholds on other units of the layer are the control. Accuracy in the other mode
falls, which the figure shows, beside LoRA of rank 4. That has 1,320 numbers: of an MLP's square matrices gains and
thresholds are a fifth to a quarter at any width; that they are a tenth is asked of a transformer's layers, which have
seven matrices.
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp import editing, views
from patchclamp.editing import Gains
from patchclamp.model import Model
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="dopamine-taugate",
    paper="Dopamine: Brain Modes, Not Brains",
    seed="003_cedf108f4263b6b3.txt",
    organism="digits:mlp-64",
)

WIDTHS, DEGREES = (64, 64, 64, 10), 45
SITES = {f"module:activations.{layer}": f"module:layers.{layer}" for layer in (0, 1)}
BASE_STEPS, MODE_STEPS, LORA_RANK, BATCH = 600, 300, 4, 64


@study.identity(
    "with the mode off the network is what it was before the mode was learned: largest difference of a logit",
    tolerance=0.0,
    control="the mode on",
    breaks=1e-3,
)
def off_is_off(lab: Lab) -> Measured:
    one = lab.once(_networks)[0]
    kept = {name: weight.clone() for name, weight in one.model.hf.state_dict().items()}
    before = one.logits(one.turned[1])
    mode = one.mode(steps=20, seed=lab.seed)
    weights = [(kept[name] - weight).abs().max() for name, weight in one.model.hf.state_dict().items()]
    gaps = torch.cat([torch.stack(weights), (one.logits(one.turned[1]) - before).flatten()])
    on = one.logits(one.turned[1], mode)
    return Measured.gap(gaps, torch.zeros_like(gaps), control=(on, before))


@study.identity(
    "of a transformer's layers a mode has a tenth of the numbers that LoRA of rank 4 has: their ratio",
    tolerance=0.1,
    control="of these MLPs",
    breaks=0.15,
)
def is_small(lab: Lab) -> Measured:
    """A gain and a threshold for each MLP neuron of `tales`; LoRA on all matrices of its layers."""
    model = lab.load("tales")
    ids = torch.ones(1, 4, dtype=torch.long)
    sites = {f"mlp_post.{layer}": f"mlp_gate.{layer}" for layer in range(model.n_layers)}
    mode = editing.learn_gains(model, sites, lambda step: model.hf(input_ids=ids).logits.mean(), steps=0)
    matrices = [w.shape for name, w in model.hf.named_parameters() if w.ndim == 2 and ".layers." in name]
    ours = 2 * sum(WIDTHS[1:-1]) / _lora_size()
    return Measured.gap(len(mode) / sum(LORA_RANK * (a + b) for a, b in matrices), 0.0, control=(ours, 0.0))


@study.finding("the networks tell turned digits apart", at_least=0.8, control="fresh weights")
def knows_both_modes(lab: Lab) -> Measured:
    every = lab.once(_networks)
    fresh = [_Network(one.seed, one.upright, one.turned, steps=0) for one in every]
    return Measured.mean(
        [one.accuracy(one.turned[1]) for one in every], control=[f.accuracy(f.turned[1]) for f in fresh]
    )


@study.finding(
    "a mode learned on turned digits tells others of them apart better: difference of accuracy",
    at_least=0.015,
    control="the same gains and thresholds on other units of the layer",
    given=knows_both_modes,
)
def the_mode_helps(lab: Lab) -> Measured:
    rows = lab.once(_turned)
    gains, control = ([row[name] - row["none"] for row in rows] for name in ("mode", "drawn"))
    return Measured.mean(gains, control=control)


@study.finding(
    "in each of the networks: smallest difference, in images of 360",
    at_least=1,
    control="the same gains and thresholds on other units of the layer",
    given=knows_both_modes,
)
def it_helps_each(lab: Lab) -> Measured:
    n = len(lab.once(_networks)[0].turned[1])
    rows = lab.once(_turned)
    least = min(round(n * (row["mode"] - row["none"])) for row in rows)
    return Measured.number(least, control=[round(n * (row["drawn"] - row["none"])) for row in rows])


@study.finding(
    "hard gates do as well as soft ones: size of the difference of accuracy",
    at_most=0.01,
    control="hard gates at thresholds of other units",
    given=the_mode_helps,
)
def hard_is_soft(lab: Lab) -> Measured:
    rows = lab.once(_turned)
    ours = abs(sum(row["hard"] - row["mode"] for row in rows) / len(rows))
    return Measured.number(ours, control=[abs(row["hard, drawn"] - row["mode"]) for row in rows])


@study.finding(
    "LoRA of rank 4, which is larger, does better still: difference of accuracy from the mode",
    at_least=0.0,
    control="the mode on other units of the layer",
    given=the_mode_helps,
)
def lora_is_better(lab: Lab) -> Measured:
    rows = lab.once(_turned)
    own, control = ([row[name] - row["mode"] for row in rows] for name in ("lora", "drawn"))
    return Measured.mean(own, control=control)


@study.figure("Accuracy in either mode: as trained, with the mode learned on turned digits, and with LoRA of rank 4")
def modes_beside_each_other(lab: Lab):
    names = ("none", "mode", "hard", "drawn", "sparse", "lora")
    rows = {"turned": lab.once(_turned), "upright": lab.once(_upright)}
    shown = [f"{digits}: {name}" for digits in rows for name in names]
    means = [_mean([row[name] for row in of]) for of in rows.values() for name in names]
    dense = _mean([_open(one, mode) for one, mode, _, _ in lab.once(_modes)])
    sparse = _mean([_open(one, mode) for one, _, mode, _ in lab.once(_modes)])
    title = (
        f"Accuracy; {dense:.0%} of gates are open, {sparse:.0%} where open ones cost (sparse); a mode has "
        f"{len(lab.once(_modes)[0][1])} numbers, LoRA {_lora_size()}"
    )
    return views.bars(shown, means, title=title)


# ── networks, modes ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Images:
    images: Float[Tensor, "image 8 8"]
    labels: Int[Tensor, "image"]

    def __len__(self) -> int:
        return len(self.labels)

    def turned(self) -> "Images":
        """By bilinear interpolation."""
        angle = math.radians(DEGREES)
        cos, sin = math.cos(angle), math.sin(angle)
        theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(self), 2, 3)
        grid = F.affine_grid(theta, [len(self), 1, 8, 8], align_corners=False)
        return Images(F.grid_sample(self.images[:, None], grid, align_corners=False)[:, 0], self.labels)

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self), (BATCH,), generator=generator)
        return self.images[rows], self.labels[rows]


class _Network:
    """An MLP trained on both modes, each of which is a pair: images to train on, and to test."""

    def __init__(self, seed: int, upright: tuple[Images, Images], turned: tuple[Images, Images], steps: int) -> None:
        from patchclamp.model import wrap
        from patchclamp.organisms.networks import MLP, MLPConfig

        self.seed, self.upright, self.turned = seed, upright, turned
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = MLP(MLPConfig(widths=WIDTHS))
        both = Images(*(torch.cat([getattr(m[0], name) for m in (upright, turned)]) for name in ("images", "labels")))
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(steps):
            x, y = both.drawn(generator)
            optimiser.zero_grad()
            network(x, labels=y).loss.backward()
            optimiser.step()
        network.zero_grad()
        self.model: Model = wrap(network.eval(), name=f"an MLP, seed {seed}")

    def mode(self, steps: int, seed: int, sparsity: float = 0.0) -> Gains:
        generator = torch.Generator().manual_seed(seed)

        def loss(step: int) -> Tensor:
            x, y = self.turned[0].drawn(generator)
            return self.model.hf(x, labels=y).loss

        return editing.learn_gains(self.model, SITES, loss, steps=steps, sparsity=sparsity)

    def lora(self, steps: int, seed: int) -> editing.Edit:
        """W + b a for each matrix, a drawn and b from zero."""
        generator = torch.Generator().manual_seed(seed)
        weights = {name: w for name, w in self.model.hf.named_parameters() if w.ndim == 2}
        right = {
            n: torch.randn(LORA_RANK, w.shape[1], generator=generator) / w.shape[1] ** 0.5 for n, w in weights.items()
        }
        left = {n: torch.zeros(w.shape[0], LORA_RANK) for n, w in weights.items()}
        learned = [part.requires_grad_() for part in (*right.values(), *left.values())]
        optimiser = torch.optim.Adam(learned, lr=0.005)
        for _ in range(steps):
            x, y = self.turned[0].drawn(generator)
            changed = {n: w.detach() + left[n] @ right[n] for n, w in weights.items()}
            loss = torch.func.functional_call(self.model.hf, changed, (x,), {"labels": y}).loss
            for part, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                part.grad = gradient
            optimiser.step()
        return editing.Edit.low_rank({n: (left[n], right[n]) for n in weights}, "LoRA")

    def logits(self, data: Images, mode: Gains | None = None, *, hard: bool = False) -> Tensor:
        logits = self.model.run({"inputs": data.images}, do=mode.on(hard=hard) if mode else ()).logits
        assert logits is not None
        return logits

    def accuracy(self, data: Images, mode: Gains | None = None, *, hard: bool = False) -> float:
        return float((self.logits(data, mode, hard=hard).argmax(-1) == data.labels).double().mean())


def _networks(lab: Lab) -> list[_Network]:
    lab.need({"train", "test"} <= set(lab.truth.splits), "images with labels, in a part to train on and one to test")
    upright = tuple(Images(*lab.truth.split(part)) for part in ("train", "test"))
    turned = tuple(part.turned() for part in upright)
    steps = 0 if lab.untrained else BASE_STEPS
    seeds = range(20 * lab.seed, 20 * lab.seed + (20 if lab.full else 6))
    return [_Network(seed, upright, turned, steps) for seed in lab.progress(seeds, "networks")]  # type: ignore[arg-type]


def _modes(lab: Lab) -> list[tuple[_Network, Gains, Gains, editing.Edit]]:
    steps = 0 if lab.untrained else MODE_STEPS
    return [
        (one, one.mode(steps, one.seed), one.mode(steps, one.seed, sparsity=0.5), one.lora(steps, one.seed))
        for one in lab.progress(lab.once(_networks), "modes")
    ]


def _turned(lab: Lab) -> list[dict[str, float]]:
    return [_accuracies(row, row[0].turned[1]) for row in lab.once(_modes)]


def _upright(lab: Lab) -> list[dict[str, float]]:
    return [_accuracies(row, row[0].upright[1]) for row in lab.once(_modes)]


def _accuracies(row: tuple[_Network, Gains, Gains, editing.Edit], data: Images) -> dict[str, float]:
    one, mode, sparse, lora = row
    drawn = mode.drawn(one.seed)
    with lora.applied(one.model):
        with_lora = one.accuracy(data)
    return {
        "none": one.accuracy(data),
        "mode": one.accuracy(data, mode),
        "hard": one.accuracy(data, mode, hard=True),
        "drawn": one.accuracy(data, drawn),
        "hard, drawn": one.accuracy(data, drawn, hard=True),
        "lora": with_lora,
        "sparse": one.accuracy(data, sparse),
    }


def _lora_size() -> int:
    return sum(LORA_RANK * (a + b) for a, b in itertools.pairwise(WIDTHS))


def _open(one: _Network, mode: Gains) -> float:
    """The share of gates that are open on turned digits."""
    return _mean(list(mode.active(one.model, {"inputs": one.turned[1].images}).values()))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
