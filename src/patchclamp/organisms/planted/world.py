"""The generator: `Planted` says which features there are and how they fire, and draws rows of activations.

    world = Planted(width=64, probabilities=(8 / 256,) * 256, noise=0.01)
    world.sample(1000, seed=0).activations

Row i of a stream depends on (world, seed, i) alone. Numbers are drawn for 1024 rows at a time by a counter-based
generator (Philox) whose counter is the block's number, one stream for each purpose: so a batch of any size and from any
row on gives the same rows, and a change of noise, coefficients or models leaves alone which features fire. Codes are
drawn on the CPU and are the same on every device; activations are then made on the device that is asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from patchclamp.organisms.planted.batch import Batch, join
from patchclamp.organisms.planted.checks import check
from patchclamp.organisms.planted.laws import Law, Uniform
from patchclamp.organisms.planted.layout import PlantedTruth, lay_out

BLOCK = 1024
_FIRE, _COPY, _COMMON, _CHILD, _START, _VALUE, _ANGLE, _NOISE = range(8)  # what numbers are drawn for; noise is last


@dataclass(frozen=True)
class Teacher:
    """A known MLP, relu(x @ encoder.T - threshold) @ decoder, from the first model's activations to `Batch.outputs`.

    Unit j's encoder direction is random or, with `reads`, the normalised sum of that many planted features'
    directions; decoder directions are random unit vectors.
    """

    units: int
    threshold: float = 1.0
    reads: int = 0


@dataclass(frozen=True, repr=False)
class Planted:
    """Activations x = sum_i strength_i z_i d_i + offset + noise, in one or several models, of width d.

    `probabilities` are those with which each feature fires (the marginal ones, whatever else is said), and a feature
    that fires has a coefficient z_i by the law `coefficients`. Features are independent, save that
    - `exact`: exactly sum(probabilities) of them fire in each row;
    - `groups`: in each group any two features of one probability have this `correlation`
      (in general covariance = correlation * (min(p_i, p_j) - p_i p_j));
    - `parents`: a feature's parent, which comes before it, or -1. A child fires only where its parent does. With
      `exclusive`, at most one child of a parent does. A child's direction has cosine `child_cosine` with its parent's.
    Features in `circles` write strength * z * (cos(angle) a + sin(angle) b), with an angle that is uniform on the
    circle, or on `points` equally spaced points of it.
    `strengths[model][feature]` says how strongly each model has it, 0 being not at all; () is one model with all of
    strength 1. Models write a feature in different directions, or, `aligned`, in the same.
    Directions are "random" unit vectors, "orthogonal" ones, or live on `support[i]` "neurons" each, equally.
    `noise` is its standard deviation in each dimension; `offset` the length of a constant vector; `labels` name the
    kind of each feature. `seed` draws the directions, and `sample(n, seed)` the rows.
    ValueError says what cannot be.
    """

    width: int
    probabilities: tuple[float, ...]
    coefficients: Law = field(default_factory=Uniform)
    exact: bool = False
    groups: tuple[tuple[int, ...], ...] = ()
    correlation: float = 0.0
    parents: tuple[int, ...] = ()
    exclusive: bool = True
    child_cosine: float = 0.0
    circles: tuple[int, ...] = ()
    points: int = 0
    strengths: tuple[tuple[float, ...], ...] = ()
    aligned: bool = False
    geometry: Literal["random", "orthogonal", "neurons"] = "random"
    support: tuple[int, ...] = ()
    noise: float = 0.0
    offset: float = 0.0
    teacher: Teacher | None = None
    labels: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)

    def __repr__(self) -> str:
        active = f"{sum(self.probabilities):.3g} of {self.features} features fire in a row"
        models = f", {self.models} models" if self.models > 1 else ""
        return f"Planted({active}, width {self.width}{models}, seed {self.seed})"

    @property
    def features(self) -> int:
        return len(self.probabilities)

    @property
    def models(self) -> int:
        return len(self.strengths) or 1

    def truth(self) -> PlantedTruth:
        """What was planted: directions, probabilities, hierarchy, groups; on the CPU."""
        return self._truth

    @cached_property
    def _truth(self) -> PlantedTruth:
        return lay_out(self)

    def sample(self, n: int, seed: int = 0, *, start: int = 0, device: torch.device | str = "cpu") -> Batch:
        """Rows start to start + n of the stream of this seed.

        >>> world = Planted(width=4, probabilities=(0.2,) * 8)
        >>> world.sample(100).activations.shape
        torch.Size([100, 4])
        >>> torch.equal(world.sample(100)[60:].activations, world.sample(40, start=60).activations)
        True
        """
        if n < 1 or start < 0:
            raise ValueError(f"a sample is 1 row or more, from row 0 or later: not {n} from {start}")
        first = start // BLOCK
        blocks = self._blocks(seed, first, device)
        found = join([next(blocks) for _ in range(first, (start + n - 1) // BLOCK + 1)])
        return found[start - first * BLOCK : start - first * BLOCK + n]

    def stream(
        self, batch: int, seed: int = 0, *, start: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Batches of `batch` rows from row `start` on, without end."""
        if batch < 1 or start < 0:
            raise ValueError(f"a stream has batches of 1 row or more, from row 0 or later: not {batch} from {start}")
        blocks = self._blocks(seed, start // BLOCK, device)
        held = next(blocks)[start % BLOCK :]
        while True:
            pieces, count = [held], len(held)
            while count < batch:
                pieces.append(next(blocks))
                count += len(pieces[-1])
            held = join(pieces)
            yield held[:batch]
            held = held[batch:]

    # ── one block ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _blocks(self, seed: int, first: int, device: torch.device | str) -> Iterator[Batch]:
        truth = self.truth().to(device)
        probabilities = np.array(self.probabilities)
        while True:
            yield self._block(seed, first, probabilities, truth)
            first += 1

    def _block(self, seed: int, block: int, probabilities: np.ndarray, truth: PlantedTruth) -> Batch:
        def draw(purpose: int, *shape: int) -> np.ndarray:
            return _generator(seed, purpose, block).random(shape, dtype=np.float32)

        fires = self._exactly(draw, probabilities) if self.exact else self._independent(draw, probabilities)
        rows, indices = (torch.from_numpy(np.ascontiguousarray(axis)) for axis in fires.nonzero())
        offsets = torch.searchsorted(rows, torch.arange(BLOCK + 1))
        values = self.coefficients.quantile(torch.from_numpy(draw(_VALUE, len(indices))))
        angles = None
        if self.circles:
            turns = torch.from_numpy(draw(_ANGLE, BLOCK, len(self.circles)))
            turns = (turns * self.points).floor() / self.points if self.points else turns
            angles = (turns * 2 * torch.pi).masked_fill(~torch.from_numpy(fires[:, list(self.circles)]), torch.nan)
        device = truth.directions.device
        codes = Batch(torch.empty(0), offsets, indices, values, self.features, block * BLOCK, angles).to(device)
        written = []
        for model in range(self.models):
            x = _written(codes, rows.to(device), truth, model)
            if self.noise:
                noise = _generator(seed, _NOISE + model, block).standard_normal((BLOCK, self.width), dtype=np.float32)
                x = x + self.noise * torch.from_numpy(noise).to(device)
            written.append(x)
        units = outputs = None
        if self.teacher is not None:
            units = (written[0] @ truth.encoder.T - self.teacher.threshold).relu()
            outputs = units @ truth.decoder
        return Batch(
            activations=torch.stack(written, 1) if self.models > 1 else written[0],
            offsets=codes.offsets,
            indices=codes.indices,
            values=codes.values,
            features=self.features,
            start=codes.start,
            angles=codes.angles,
            units=units,
            outputs=outputs,
        )

    def _independent(self, draw, probabilities: np.ndarray) -> np.ndarray:
        """Bool [row, feature]: each fires by itself, with its group, or under its parent."""
        u = draw(_FIRE, BLOCK, self.features)
        if self.groups and self.correlation:
            common = draw(_COMMON, BLOCK, len(self.groups))
            copies = draw(_COPY, BLOCK, self.features) < self.correlation**0.5
            for index, group in enumerate(self.groups):
                members = list(group)  # a member that copies takes the group's number in place of its own
                u[:, members] = np.where(copies[:, members], common[:, [index]], u[:, members])
        fires = u < probabilities.astype(np.float32)
        if not self.parents:
            return fires
        choice = draw(_CHILD, BLOCK, self.features)
        for children, parents, low, high in self._generations:
            # Exclusive siblings share their parent's number and have intervals of their own; others have their own.
            number = choice[:, parents] if self.exclusive else choice[:, children]
            fires[:, children] = fires[:, parents] & (low <= number) & (number < high)
        return fires

    @cached_property
    def _generations(self) -> list[tuple[list[int], list[int], np.ndarray, np.ndarray]]:
        """By depth: the children, their parents, and the interval of numbers in which each child fires."""
        depth, taken = [0] * self.features, [0.0] * self.features
        generations: dict[int, list[tuple[int, int, float, float]]] = {}
        for child, parent in enumerate(self.parents):
            if parent < 0:
                continue
            depth[child] = depth[parent] + 1
            share = self.probabilities[child] / self.probabilities[parent] if self.probabilities[child] else 0.0
            low = taken[parent] if self.exclusive else 0.0
            taken[parent] += share
            generations.setdefault(depth[child], []).append((child, parent, low, low + share))
        columns = [list(zip(*rows, strict=True)) for _, rows in sorted(generations.items())]
        return [(list(c), list(p), np.array(low), np.array(high)) for c, p, low, high in columns]

    def _exactly(self, draw, probabilities: np.ndarray) -> np.ndarray:
        """Bool [row, feature]: systematic sampling in a random order, which keeps the marginal probabilities."""
        order = draw(_FIRE, BLOCK, self.features).argsort(1)
        ends = probabilities[order].cumsum(1)
        ends[:, -1] = round(sum(self.probabilities))
        start = draw(_START, BLOCK, 1)
        chosen = np.diff(np.floor(ends - start), axis=1, prepend=np.floor(-start)) > 0
        fires = np.zeros_like(chosen)
        np.put_along_axis(fires, order, chosen, axis=1)
        return fires


def _written(codes: Batch, rows: Tensor, truth: PlantedTruth, model: int) -> Float[Tensor, "row d"]:
    """What one model makes of the codes, without noise; the same sum in the same order for a row of any batch."""
    x = truth.offsets[model].repeat(BLOCK, 1)
    if not len(codes.values):
        return x
    weights = codes.values * truth.strengths[model, codes.indices]
    if codes.angles is not None:
        place = torch.full((codes.features,), -1, device=x.device)
        place[list(truth.circles)] = torch.arange(len(truth.circles), device=x.device)
        circle = place[codes.indices]
        turn = codes.angles[rows, circle.clamp_min(0)]
        beside = torch.where(circle >= 0, weights * turn.sin(), 0.0)
        weights = torch.where(circle >= 0, weights * turn.cos(), weights)
        axes = truth.planes[model, :, 1]
        x = x + _sum(circle.clamp_min(0), axes, codes.offsets, beside)
    return x + _sum(codes.indices, truth.directions[model], codes.offsets, weights)


def _sum(indices: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Float[Tensor, "row d"]:
    return F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _generator(seed: int, purpose: int, block: int) -> np.random.Generator:
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, block, 0, 0]))
