"""Worlds by name, each with the sizes that studies use: `superposition()`, `tree()`, `pair()`, `circles()`, ...

What a fixture has no argument for, `dataclasses.replace(world, ...)` changes.
"""

import numpy as np

from patchclamp.organisms.planted.laws import Constant, Law, Uniform
from patchclamp.organisms.planted.world import Planted, Teacher

UNIFORM = Uniform(0.5, 1.5)
NEAR_ONE = Uniform(0.8, 1.2)


def power_law(features: int, active: float, power: float = 0.0) -> tuple[float, ...]:
    """Probabilities proportional to rank^-power, of which `active` fire in a row on average.

    ValueError where the most frequent would fire more than always.

    >>> power_law(4, active=1.0)
    (0.25, 0.25, 0.25, 0.25)
    """
    ranks = np.arange(1, features + 1, dtype=float) ** -power
    probabilities = active * ranks / max(ranks.sum(), 1.0)
    if active < 0 or active > ranks.sum():
        raise ValueError(
            f"{active} of {features} features cannot fire on average with power {power}: "
            f"at most {ranks.sum():.4g} can, where the first always fires"
        )
    return tuple(probabilities.tolist())


def superposition(
    features: int = 256,
    width: int = 64,
    active: float = 8.0,
    *,
    power: float = 0.0,
    coefficients: Law = UNIFORM,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """More features than dimensions: x = z D + noise, with random unit rows of D and P(fires) = active / features.

    With `power`, frequencies follow a power law.
    """
    return Planted(width, power_law(features, active, power), coefficients, noise=noise, seed=seed)


def sparse_codes(
    sources: int = 16,
    width: int = 8,
    active: int = 3,
    *,
    coefficients: Law = UNIFORM,
    seed: int = 0,
) -> Planted:
    """Compressed sensing: exactly `active` of the `sources` fire in each row of x = z D.

    With `Constant()` coefficients rows are sums of `active` atoms, as a decoder whose latents are not atomic.
    """
    return Planted(width, power_law(sources, active), coefficients, exact=True, seed=seed)


def tree(
    parents: int = 4,
    children: int = 5,
    *,
    width: int = 32,
    active: float = 2.0,
    child_share: float = 0.8,
    child_cosine: float = 0.0,
    coefficients: Law = NEAR_ONE,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """Parents with exclusive children, in orthogonal directions: what absorption and splitting are measured on.

    A child implies its parent, and at most one child of a parent fires: `child_share` of the parent's firings have one.
    `active` features fire on average, with coefficients near 1, so that a dictionary saves a latent by absorbing a
    parent into its children. With a high `child_cosine`, children are variants of the parent's direction.
    Features 0 to parents - 1 are labelled "parent", then each parent's children, "child".
    """
    if not 0 <= child_share <= 1:
        raise ValueError(f"child_share {child_share} is the share of a parent's firings with a child: 0 to 1")
    often = active / (parents * (1 + child_share))
    return Planted(
        width,
        (often,) * parents + (often * child_share / children,) * (parents * children),
        coefficients,
        parents=(-1,) * parents + tuple(parent for parent in range(parents) for _ in range(children)),
        child_cosine=child_cosine,
        geometry="orthogonal",
        noise=noise,
        labels=("parent",) * parents + ("child",) * (parents * children),
        seed=seed,
    )


def pair(
    shared: int = 32,
    weak: int = 8,
    only_a: int = 8,
    only_b: int = 8,
    *,
    width: int = 64,
    active: float = 4.0,
    strength: float = 0.35,
    aligned: bool = True,
    coefficients: Law = UNIFORM,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """Two models of one row, A (base) and B (tuned): what crosscoders and diffing are measured on.

    Labels: "shared"; "weak" (of this `strength` in A, 1 in B); "A-only"; "B-only". Directions are orthogonal, and the
    same in both models unless `aligned` is False.
    """
    counts = {"shared": shared, "weak": weak, "A-only": only_a, "B-only": only_b}
    in_a = {"shared": 1.0, "weak": strength, "A-only": 1.0, "B-only": 0.0}
    labels = tuple(label for label, count in counts.items() for _ in range(count))
    return Planted(
        width,
        power_law(len(labels), active),
        coefficients,
        strengths=(tuple(in_a[label] for label in labels), tuple(float(label != "A-only") for label in labels)),
        aligned=aligned,
        geometry="orthogonal",
        noise=noise,
        labels=labels,
        seed=seed,
    )


def layers(
    count: int = 4,
    features: int = 64,
    width: int = 32,
    active: float = 4.0,
    *,
    persistent: float = 0.5,
    aligned: bool = True,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """Layers of one network: features that are born at a layer and last until another, of strength 1 in between.

    A share `persistent` of them is in every layer; the others' first and last layers are random. The label is
    "first-last", such as "1-3".
    """
    generator = np.random.default_rng([seed, count, features])
    lives = np.sort(generator.integers(0, count, (features, 2)), axis=1)
    lives[: round(persistent * features)] = 0, count - 1
    return Planted(
        width,
        power_law(features, active),
        strengths=tuple(tuple(float(a <= layer <= b) for a, b in lives.tolist()) for layer in range(count)),
        aligned=aligned,
        noise=noise,
        labels=tuple(f"{a}-{b}" for a, b in lives.tolist()),
        seed=seed,
    )


def circles(
    circles: int = 4,
    lines: int = 28,
    *,
    width: int = 24,
    active: float = 3.0,
    points: int = 0,
    coefficients: Law = UNIFORM,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """Features of two dimensions among ordinary ones: `circles` write their coefficient at an angle, in a plane.

    With `points` an angle is one of so many places, as days of the week have 7. Labels: "circle" and "line".
    """
    return Planted(
        width,
        power_law(circles + lines, active),
        coefficients,
        circles=tuple(range(circles)),
        points=points,
        noise=noise,
        labels=("circle",) * circles + ("line",) * lines,
        seed=seed,
    )


def teacher(
    units: int = 40,
    width: int = 24,
    threshold: float = 1.0,
    *,
    features: int = 0,
    active: float = 0.0,
    reads: int = 0,
    noise: float = 1.0,
    seed: int = 0,
) -> Planted:
    """A layer and what a known MLP makes of it, for transcoders: `units`, each with an encoder and a decoder direction.

    The layer is Gaussian of standard deviation `noise`; with `features` there are planted ones in it besides, and with
    `reads` each unit reads that many of those. A unit fires where its projection passes the threshold.
    """
    return Planted(width, power_law(features, active), noise=noise, teacher=Teacher(units, threshold, reads), seed=seed)


def neurons(
    width: int = 512,
    support: int = 3,
    shift: float = 1.6,
    *,
    distractors: int = 20,
    correlation: float = 0.3,
    seed: int = 0,
) -> Planted:
    """Neurons of unit noise of which `support` know a label: their means shift by `shift` where feature 0 fires.

    Each of the `distractors` shifts one more neuron and fires in correlation with the label. Everything fires in half
    of the rows. Labels: "label" and "distractor"; the neurons are where `truth().directions` is not zero.
    """
    count = 1 + distractors
    return Planted(
        width,
        (0.5,) * count,
        Constant(),
        groups=(tuple(range(count)),) if correlation else (),
        correlation=correlation,
        strengths=((shift * support**0.5, *[shift] * distractors),),
        geometry="neurons",
        support=(support, *[1] * distractors),
        noise=1.0,
        labels=("label", *["distractor"] * distractors),
        seed=seed,
    )
