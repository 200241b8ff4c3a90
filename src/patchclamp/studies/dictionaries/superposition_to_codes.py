"""From Superposition to Sparse Codes: Interpretable Representations in Neural Networks (Klindt et al. 2025).

Three steps lead from a network to codes that can be read. A classifier trained by cross-entropy represents the latents
of its data up to a linear map. From few dimensions, about K log(N/K), sparse coding recovers K of N features. And what
was recovered is measured against the truth after matching (MCC). Then all three together: latents in superposition,
bent by a generator, classified, and found again in the classifier's activations by dictionary learning alone.

Latents, generators and classifiers are made here; their network is an MLP like the digits organisms'. The pipeline has
latents of either sign: a classifier's representation is known up to a shift, which centring can only undo where codes
have mean 0.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchclamp.dictionaries import measures
from patchclamp.dictionaries.inference import Unsolved, fista, sparse_coding
from patchclamp.organisms import planted
from patchclamp.organisms.networks import MLP, MLPConfig
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.seeds import over_seeds
from patchclamp.studies.study import Study

study = Study(
    name="superposition-to-codes",
    paper="From Superposition to Sparse Codes: Interpretable Representations in Neural Networks (arXiv:2503.01824)",
    seed="004_13a88e549a94230e.txt",
    organism="digits:mlp-64",
)

SPHERE, CLASSES, CONCENTRATION = 6, 200, 10.0
SOURCES, ACTIVE = 64, 4
DIMENSIONS = (4, 6, 8, 11, 16, 22, 33, 44, 64)
LATENTS, WIDTH, FIRING, PENALTY = 12, 8, 2, 0.1


# ── a classifier's representation is linear in the latents ────────────────────────────────────────────────────────────


@study.finding(
    "a classifier of latents that it sees only through a nonlinear generator represents them linearly: held-out R²",
    at_least=0.90,
    control="the same network untrained, three times",
)
@over_seeds
def classifiers_are_linear_in_latents(lab: Lab) -> Measured:
    """Latents uniform on a sphere, 200 von Mises-Fisher classes, regression from representation to latents."""
    scores = lab.once(_sphere)
    return Measured.number(scores.trained, control=scores.untrained)


@study.finding(
    "by so much more than an untrained network: difference in R²",
    at_least=0.30,
    control="differences between untrained networks",
    given=classifiers_are_linear_in_latents,
)
@over_seeds
def training_makes_it_linear(lab: Lab) -> Measured:
    scores = lab.once(_sphere)
    middle = float(np.mean(scores.untrained))
    return Measured.number(scores.trained - middle, control=[score - middle for score in scores.untrained])


# ── sparse recovery needs about K log(N/K) dimensions ─────────────────────────────────────────────────────────────────


@study.finding(
    "the dimensions at which half of all supports are recovered exactly, against K log(N/K): factor, as |log2|",
    at_most=1.0,
    control="with another dictionary than the one that made the rows",
)
@over_seeds
def recovery_sets_in_where_theory_says(lab: Lab) -> Measured:
    """Interpolated between the sizes of the sweep; its largest size where half is never reached."""
    bound = ACTIVE * math.log(SOURCES / ACTIVE)
    right, wrong = lab.once(_sweep)

    def factor(shares: dict[int, float]) -> float:
        return abs(math.log2(crossing(shares, 0.5) / bound))

    return Measured.number(factor(right), control=factor(wrong))


@study.finding(
    "with three times as many dimensions the support is recovered: share of rows",
    at_least=0.95,
    control="with another dictionary than the one that made the rows",
    given=recovery_sets_in_where_theory_says,
)
@over_seeds
def three_times_as_many_are_enough(lab: Lab) -> Measured:
    size = round(3 * ACTIVE * math.log(SOURCES / ACTIVE))
    return Measured.share(_hits(lab, size, lab.untrained), control=_hits(lab, size, True))


# ── all together ──────────────────────────────────────────────────────────────────────────────────────────────────────


@study.finding(
    "dictionary learning on the classifier's activations finds the latents in superposition: MCC of codes",
    at_least=0.80,
    control="PCA, ICA, and dictionary learning on the untrained network",
    given=classifiers_are_linear_in_latents,
)
@over_seeds
def the_pipeline_finds_the_latents(lab: Lab) -> Measured:
    """A latent for which a baseline has no component counts 0: PCA and ICA have as many as dimensions."""
    table = lab.once(_pipeline)
    others = [score for name, score in table.items() if name != "sparse coding"]
    return Measured.number(table["sparse coding"], control=others)


# ── the measure itself ────────────────────────────────────────────────────────────────────────────────────────────────


@study.identity(
    "permuting, flipping and scaling true codes leaves their MCC at 1",
    tolerance=1e-6,
    control="a random rotation of them",
    breaks=0.1,
)
def matching_sees_through_permutations(lab: Lab) -> Measured:
    codes = planted.sparse_codes(LATENTS, WIDTH, FIRING, seed=lab.seed).sample(2000).coefficients
    order = torch.randperm(LATENTS, generator=lab.generator)
    scale = torch.randn(LATENTS, generator=lab.generator)
    scale = scale.sign() * (0.1 + scale.abs())
    rotation = torch.linalg.qr(torch.randn(LATENTS, LATENTS, generator=lab.generator)).Q
    return Measured.gap(
        measures.mcc(codes[:, order] * scale, codes), 1.0, control=(measures.mcc(codes @ rotation, codes), 1.0)
    )


@study.identity("random codes have an MCC of no more than this", tolerance=0.3, control="the true codes", breaks=0.99)
def random_codes_match_nothing(lab: Lab) -> Measured:
    world = planted.sparse_codes(LATENTS, WIDTH, FIRING, seed=lab.seed)
    codes, others = (world.sample(2000, seed=seed).coefficients for seed in (0, 1))
    return Measured.gap(measures.mcc(others, codes), 0.0, control=(measures.mcc(codes, codes), 0.0))


@study.figure("Share of supports recovered exactly, by dimensions; K log(N/K) is the dotted line")
def recovery(lab: Lab):
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, shares in zip(("its dictionary", "another dictionary"), lab.once(_sweep), strict=True):
        figure.add_scatter(x=list(shares), y=list(shares.values()), name=name, mode="lines+markers")
    figure.add_vline(x=ACTIVE * math.log(SOURCES / ACTIVE), line_dash="dot")
    figure.update_xaxes(title="dimensions", type="log")
    figure.update_yaxes(title="rows whose support is exact", range=[0, 1])
    return figure


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────

Draw = Callable[[int, torch.Generator], Float[Tensor, "row latent"]]


@dataclass(frozen=True)
class Linear:
    """Held-out R² of latents from a representation."""

    trained: float
    untrained: list[float]


@dataclass(frozen=True)
class Seen:
    """Representations of rows to fit on and of held-out rows, by a trained network and by untrained ones."""

    latents: tuple[Tensor, Tensor]
    trained: tuple[Tensor, Tensor]
    untrained: list[tuple[Tensor, Tensor]]


def crossing(shares: dict[int, float], level: float) -> float:
    """Where a curve first reaches `level`, interpolated in the logarithm; its last place where it never does.

    >>> round(crossing({4: 0.0, 16: 1.0}, 0.5), 3)
    8.0
    """
    places = list(shares)
    for before, after in pairwise(places):
        if shares[before] < level <= shares[after]:
            part = (level - shares[before]) / (shares[after] - shares[before])
            return before * (after / before) ** part
    return float(places[-1] if shares[places[0]] < level else places[0])


def r_squared(fit: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> float:
    """Of a linear regression from the first of each pair to the second, with an intercept."""
    x, test = (torch.cat([h, torch.ones(len(h), 1)], 1).double() for h in (fit[0], held_out[0]))
    solution = torch.linalg.lstsq(x, fit[1].double()).solution
    return 1 - measures.fvu(held_out[1], test @ solution)


def generator_of(d: int, random: torch.Generator, layers: int = 2, slope: float = 0.2) -> Callable[[Tensor], Tensor]:
    """An invertible map: rotations with leaky ReLUs between them."""
    rotations = [torch.linalg.qr(torch.randn(d, d, generator=random)).Q for _ in range(layers + 1)]

    def generate(u: Tensor) -> Tensor:
        for rotation in rotations[:-1]:
            u = nn.functional.leaky_relu(u @ rotation, slope)
        return u @ rotations[-1]

    return generate


def _network(d: int, seed: int) -> MLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(MLPConfig(widths=(d, 128, 128, 128, d)))


def _classified(lab: Lab, latents: Draw, d: int, concentration: float) -> Seen:
    """Train a classifier of classes p(c | u) ~ exp(concentration u . mu_c) that sees only the generator's output."""
    random = lab.generator
    generate = generator_of(d, random)
    means = nn.functional.normalize(torch.randn(CLASSES, d, generator=random), dim=1)
    body, steps, batch = _network(d, lab.seed), 8000 if lab.full else 5000, 512
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lab.seed + 1)
        head = nn.Linear(d, CLASSES)
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in lab.progress(range(0 if lab.untrained else steps), "classifier"):
        u = latents(batch, random)
        noise = torch.rand(batch, CLASSES, generator=random).clamp_min_(1e-9).log_().neg_().log_()
        labels = (concentration * u @ means.T - noise).argmax(1)  # a draw from the softmax, by Gumbel's trick
        loss = nn.functional.cross_entropy(head(body(generate(u)).logits), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    rows = latents(4000, random), latents(2000, random)

    def represented(network: MLP) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            first, second = (network.eval()(generate(u)).logits for u in rows)
        return first, second

    others = [_network(d, lab.seed + 100 + draw) for draw in range(3)]
    return Seen(rows, represented(body), [represented(other) for other in others])


def _sphere(lab: Lab) -> Linear:

    def latents(n: int, random: torch.Generator) -> Tensor:
        return nn.functional.normalize(torch.randn(n, SPHERE, generator=random), dim=1)

    seen = _classified(lab, latents, SPHERE, CONCENTRATION)
    fit, held_out = seen.latents

    def score(h: tuple[Tensor, Tensor]) -> float:
        return r_squared((h[0], fit), (h[1], held_out))

    return Linear(score(seen.trained), [score(h) for h in seen.untrained])


def _hits(lab: Lab, size: int, other: bool) -> Tensor:
    """Of each row whether the ACTIVE largest codes are those that fired; with random directions where `other`."""
    world = planted.sparse_codes(SOURCES, size, ACTIVE, seed=lab.seed)
    batch = world.sample(1000 if lab.full else 200, seed=lab.seed + 1)
    decoder = torch.as_tensor(world.truth().directions[0]).float()
    if other:
        random = torch.Generator().manual_seed(lab.seed + size)
        decoder = nn.functional.normalize(torch.randn(SOURCES, size, generator=random), dim=1)
    with Unsolved.expected():  # in few dimensions nothing is to be found, however exactly
        z = fista(decoder, batch.activations, 0.01, tolerance=1e-4, iterations=500).codes.dense()
    chosen = torch.zeros_like(batch.fires).scatter(1, z.topk(ACTIVE).indices, True)
    return (chosen == batch.fires).all(1)


def _sweep(lab: Lab) -> tuple[dict[int, float], dict[int, float]]:
    """Share of exact supports by dimensions, with the dictionary that made the rows, and with another."""
    right, wrong = (
        {size: float(_hits(lab, size, other).float().mean()) for size in DIMENSIONS} for other in (lab.untrained, True)
    )
    return right, wrong


def _whitened(fit: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the mean and covariance of the first: a representation is known up to a linear map, this one may be
    nearly flat.
    """
    values, vectors = torch.linalg.eigh(torch.cov(fit.T))
    whiten = vectors @ torch.diag(values.clamp_min(1e-9) ** -0.5) @ vectors.T
    return (fit - fit.mean(0)) @ whiten, (held_out - fit.mean(0)) @ whiten


def _pipeline(lab: Lab) -> dict[str, float]:
    """MCC with the true latents of what each method finds in activations, on held-out rows."""
    directions = nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=lab.generator), dim=1)
    drawn: list[Tensor] = []

    def latents(n: int, random: torch.Generator) -> Tensor:
        places = torch.rand(n, LATENTS, generator=random).topk(FIRING).indices
        size = torch.rand(n, FIRING, generator=random) + 0.5
        sign = 2.0 * torch.randint(2, (n, FIRING), generator=random) - 1
        drawn[:] = [torch.zeros(n, LATENTS).scatter(1, places, sign * size)]
        return drawn[0] @ directions

    seen = _classified(lab, latents, WIDTH, CONCENTRATION)
    true, like = drawn[0], float(seen.latents[0].std())

    def coded(h: tuple[Tensor, Tensor]) -> float:
        fit, held_out = _whitened(*h)
        fit, held_out = fit * like, held_out * like
        tokens = 64 if lab.untrained else 64 * (2000 if lab.full else 600)  # one batch: about where it began
        dictionary = sparse_coding(fit, LATENTS, l1=PENALTY, signed=True, batch=64, tokens=tokens, seed=lab.seed)
        with Unsolved.expected():
            found = fista(dictionary.W_dec, held_out, PENALTY, signed=True, tolerance=1e-4)
        return measures.mcc(found.codes.dense(), true)

    def components(model) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that ICA did not converge: it is given all the iterations of its default
            model.fit(seen.trained[0].numpy())
        found = torch.as_tensor(model.transform(seen.trained[1].numpy()))
        return measures.mcc(torch.cat([found, torch.zeros(len(found), LATENTS - found.shape[1])], 1), true)

    from sklearn.decomposition import PCA, FastICA

    return {
        "sparse coding": coded(seen.trained),
        "untrained network": coded(seen.untrained[0]),
        "PCA": components(PCA(WIDTH)),
        "ICA": components(FastICA(WIDTH, random_state=lab.seed, whiten="unit-variance")),
    }
