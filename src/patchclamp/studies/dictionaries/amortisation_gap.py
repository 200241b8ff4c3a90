"""Compute Optimal Inference and Provable Amortisation Gap in Sparse Autoencoders (O'Neill, Gumran and Klindt 2025).

An SAE infers codes with one linear map and a nonlinearity. Through fewer dimensions than latents this cannot be right
for all sparse codes, while an iterative method can: the amortisation gap. Rows are 3 of 16 sources in 8 dimensions,
1,024 to learn from; codes are scored by their correlation with the true ones after matching (MCC). First codes and
dictionary are known, and encoders imitate the codes; then neither is. Last comes the gap of an SAE on a language
model's stream, at the same number of latents. Every mean is over worlds.

At K = 1 a gap is left, as atoms of 8 dimensions are not orthogonal: orthogonal sources are the control without one.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import patchclamp as pc
from patchclamp.dictionaries import Dictionary, TopK, measures
from patchclamp.dictionaries.inference import AmortisedEncoder, amortise, fista, flops, gradient_pursuit, sparse_coding
from patchclamp.dictionaries.inference.proximal import duality_gap
from patchclamp.organisms import planted
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="amortisation-gap",
    paper="Compute Optimal Inference and Provable Amortisation Gap in Sparse Autoencoders (arXiv:2411.13117)",
    seed="004_13a88e549a94230e.txt",
    organism="tales",
)

SOURCES, WIDTH, ACTIVE, ROWS = 16, 8, 3, 1024
PENALTY, LEARNING_PENALTY = 0.01, 0.05
HIDDEN = 64
SITE, K, LATENTS = "resid_post.2", 8, 384


@study.finding(
    "the dictionary known, iterative inference finds the codes: MCC",
    at_least=0.97,
    control="the same inference on random directions",
)
def inference_finds_the_codes(lab: Lab) -> Measured:
    scores = lab.once(_known)
    return Measured.mean([s.fista for s in scores], control=[s.floor for s in scores])


@study.finding(
    "the codes known too, a linear-nonlinear encoder does not imitate them, on the very rows that it learns from: MCC",
    at_most=0.90,
    control="iterative inference",
    given=inference_finds_the_codes,
)
def linear_encoders_do_not(lab: Lab) -> Measured:
    """For each world the better of two learning rates."""
    scores = lab.once(_known)
    return Measured.mean([s.linear for s in scores], control=[s.fista for s in scores])


@study.finding(
    "the amortisation gap: MCC of iterative inference less that of the linear-nonlinear encoder",
    at_least=0.10,
    control="the gap where the sources are orthogonal, so that one map is enough",
    given=inference_finds_the_codes,
)
def there_is_a_gap(lab: Lab) -> Measured:
    known, orthogonal = lab.once(_known), lab.once(_orthogonal)
    return Measured.mean([s.gap for s in known], control=[s.gap for s in orthogonal])


@study.finding(
    "no gap where the sources are orthogonal",
    at_most=0.03,
    control="the gap with twice as many sources as dimensions",
    given=inference_finds_the_codes,
)
def no_gap_without_superposition(lab: Lab) -> Measured:
    known, orthogonal = lab.once(_known), lab.once(_orthogonal)
    return Measured.mean([s.gap for s in orthogonal], control=[s.gap for s in known])


@study.finding(
    "an encoder with a hidden layer comes nearer: the share of the gap that it closes, on the rows that it learns from",
    at_least=0.25,
    control="the linear-nonlinear encoder at its other learning rate",
    given=there_is_a_gap,
)
def depth_closes_some(lab: Lab) -> Measured:
    scores = lab.once(_known)
    return Measured.mean(
        [(s.deep - s.linear) / s.gap for s in scores], control=[(s.worse - s.linear) / s.gap for s in scores]
    )


@study.finding(
    "and not all of it on rows that it has not seen: MCC of iterative inference less that of the deeper encoder",
    at_least=0.02,
    control="the same gap where the sources are orthogonal",
    given=there_is_a_gap,
)
def depth_does_not_close_all(lab: Lab) -> Measured:
    known, orthogonal = lab.once(_known), lab.once(_orthogonal)
    return Measured.mean([s.unseen - s.deep_unseen for s in known], control=[s.gap for s in orthogonal])


@study.finding(
    "neither known, sparse coding finds the dictionary: mean cosine after matching",
    at_least=0.95,
    control="random directions",
)
def sparse_coding_finds_the_dictionary(lab: Lab) -> Measured:
    scores = lab.once(_unknown)
    return Measured.mean([s.dictionary for s in scores], control=[s.random_dictionary for s in scores])


@study.finding(
    "and its codes are better than those of an SAE: difference in MCC on rows that neither has seen",
    at_least=0.15,
    control="the same inference on the SAE's decoder, so that this gap is the dictionary's",
    given=sparse_coding_finds_the_dictionary,
)
def sparse_coding_beats_autoencoders(lab: Lab) -> Measured:
    """The SAE is the better of TopK and the linear-nonlinear encoder with an L1 penalty, learned with its decoder."""
    scores = lab.once(_unknown)
    return Measured.mean([s.codes - s.sae for s in scores], control=[s.sae_inferred - s.sae for s in scores])


@study.finding(
    "a dictionary of the model's stream explains it: share of the variance that 8 latents of the encoder leave",
    at_most=0.40,
    control="a random dictionary with gradient pursuit",
)
def dictionary_explains_the_stream(lab: Lab) -> Measured:
    table = lab.once(_stream)
    return Measured.mean(table["encoder"], control=table["random"])


@study.finding(
    "gradient pursuit leaves less than the encoder with as many latents of the same decoder: share that it leaves of "
    "what the encoder leaves",
    at_most=0.95,
    control="the encoder, by halves of the rows",
    given=dictionary_explains_the_stream,
)
def pursuit_explains_more_of_the_stream(lab: Lab) -> Measured:
    table = lab.once(_stream)
    left = table["encoder"].mean()
    return Measured.mean(table["gradient-pursuit"] / left, control=table["encoder"] / left)


@study.identity(
    "inferred codes are optimal: relative duality gap",
    tolerance=1e-5,
    control="the codes of the encoder",
    breaks=1e-3,
)
def codes_are_optimal(lab: Lab) -> Measured:
    """On rows and a dictionary of the first world, or random directions where nothing is learned."""
    world = _worlds(lab)[0]
    x, decoder = world.sample(256, seed=2).activations, _directions(lab, world)
    ours, encoder = (
        duality_gap(decoder, x, z, PENALTY)
        for z in (fista(decoder, x, PENALTY).codes.dense(), AmortisedEncoder(decoder).encode(x).dense())
    )
    return Measured.gap(ours, torch.zeros_like(ours), control=(encoder, torch.zeros_like(encoder)))


@study.identity(
    "the count of operations is that of the products that were made, and of a hand count",
    tolerance=0.0,
    control="the count of one iteration less",
    breaks=1.0,
)
def operations_are_counted(lab: Lab) -> Measured:
    """FISTA of 20 iterations in 8 dimensions and 40 latents; linear and deeper encoders by their layers."""
    decoder = torch.randn(40, WIDTH, generator=lab.generator)
    x = torch.randn(64, WIDTH, generator=lab.generator)
    counts = []
    for rows in (x[:32], x):
        with FlopCounterMode(display=False) as counter, pc.dictionaries.inference.Unsolved.expected():
            fista(decoder, rows, PENALTY, tolerance=0, iterations=20)
        counts.append(counter.get_total_flops())
    counted = [(counts[1] - counts[0]) / 32, 2 * WIDTH * SOURCES, 2 * (WIDTH * HIDDEN + HIDDEN * SOURCES)]
    said = [
        flops("fista", d=WIDTH, width=40, iterations=20),
        flops("encoder", d=WIDTH, width=SOURCES),
        flops("encoder", d=WIDTH, width=SOURCES, hidden=(HIDDEN,)),
    ]
    fewer = flops("fista", d=WIDTH, width=40, iterations=19)
    return Measured.gap(counted, said, control=(counted, [fewer, *said[1:]]))


@study.figure("Codes' MCC on rows not learned from, by what one row costs; mean over worlds")
def cost(lab: Lab):
    import plotly.graph_objects as go

    scores = lab.once(_known)
    points = {
        "linear-nonlinear": (flops("encoder", d=WIDTH, width=SOURCES), [s.linear_unseen for s in scores]),
        f"MLP ({HIDDEN})": (
            flops("encoder", d=WIDTH, width=SOURCES, hidden=(HIDDEN,)),
            [s.deep_unseen for s in scores],
        ),
    }
    for n in (10, 20, 50, 100, 300):
        found = [_inferred(lab, world, n) for world in _worlds(lab)]
        points[f"FISTA, {n} iterations"] = flops("fista", d=WIDTH, width=SOURCES, iterations=n), found
    drawn = go.Scatter(
        x=[operations for operations, _ in points.values()],
        y=[sum(values) / len(values) for _, values in points.values()],
        text=list(points),
        mode="markers+text",
        textposition="top center",
    )
    figure = go.Figure(drawn)
    figure.update_xaxes(type="log", title="floating-point operations a row")
    figure.update_yaxes(title="MCC with the true codes")
    return figure


@dataclass(frozen=True)
class Known:
    """MCC of codes in one world, of the rows that encoders learned from, and of others (`unseen`)."""

    fista: float
    floor: float
    linear: float
    worse: float
    deep: float
    unseen: float
    linear_unseen: float
    deep_unseen: float

    @property
    def gap(self) -> float:
        return self.fista - self.linear


@dataclass(frozen=True)
class Unknown:
    """Cosines of dictionaries with the true one, and MCC of codes of rows that were not learned from."""

    dictionary: float
    random_dictionary: float
    codes: float
    sae: float
    sae_inferred: float


def _worlds(lab: Lab) -> list[planted.Planted]:
    count = 8 if lab.full else 2
    return [planted.sparse_codes(SOURCES, WIDTH, ACTIVE, seed=100 * lab.seed + n) for n in range(count)]


def _directions(lab: Lab, world: planted.Planted) -> Float[Tensor, "source d"]:
    """The dictionary that inference is given: the true one, or where nothing is learned, random directions."""
    return _random(world, 1) if lab.untrained else torch.as_tensor(world.truth().directions[0]).float()


def _random(world: planted.Planted, draw: int) -> Float[Tensor, "source d"]:
    generator = torch.Generator().manual_seed(1000 * world.seed + draw)
    return torch.nn.functional.normalize(torch.randn(SOURCES, world.width, generator=generator), dim=1)


def _codes(decoder: Float[Tensor, "width d"], x: Float[Tensor, "row d"]) -> Float[Tensor, "row width"]:
    return fista(decoder, x, PENALTY, tolerance=1e-4).codes.dense()


def _inferred(lab: Lab, world: planted.Planted, iterations: int) -> float:
    unseen = world.sample(ROWS, seed=1)
    with pc.dictionaries.inference.Unsolved.expected():
        found = fista(_directions(lab, world), unseen.activations, PENALTY, tolerance=0, iterations=iterations)
    return measures.mcc(found.codes.dense(), unseen.coefficients)


def _encoder(lab: Lab, decoder: Tensor, batch: planted.Batch, hidden: tuple[int, ...], rate: float) -> AmortisedEncoder:
    """One that imitates the codes of a batch."""
    if lab.untrained:
        return AmortisedEncoder(decoder, hidden=hidden, seed=lab.seed)
    tokens, (x, codes) = (600 if lab.full else 150) * ROWS, (batch.activations, batch.coefficients)
    return amortise(decoder, x, hidden=hidden, codes=codes, tokens=tokens, learning_rate=rate, seed=lab.seed)


def _mcc(encoder: AmortisedEncoder | Dictionary, batch: planted.Batch) -> float:
    return measures.mcc(encoder.encode(batch.activations).dense(), batch.coefficients)


def _scored(lab: Lab, world: planted.Planted) -> Known:
    seen, unseen = world.sample(ROWS, seed=0), world.sample(ROWS, seed=1)
    decoder = _directions(lab, world)
    linear = [_encoder(lab, decoder, seen, (), rate) for rate in (1e-2, 3e-2)]
    deep = _encoder(lab, decoder, seen, (HIDDEN,), 1e-2)
    on_seen = [_mcc(encoder, seen) for encoder in linear]
    best = linear[on_seen.index(max(on_seen))]
    return Known(
        fista=measures.mcc(_codes(decoder, seen.activations), seen.coefficients),
        floor=measures.mcc(_codes(_random(world, 2), seen.activations), seen.coefficients),
        linear=max(on_seen),
        worse=min(on_seen),
        deep=_mcc(deep, seen),
        unseen=measures.mcc(_codes(decoder, unseen.activations), unseen.coefficients),
        linear_unseen=_mcc(best, unseen),
        deep_unseen=_mcc(deep, unseen),
    )


def _known(lab: Lab) -> list[Known]:
    return [_scored(lab, world) for world in lab.progress(_worlds(lab), "known codes")]


def _orthogonal(lab: Lab) -> list[Known]:
    """The same with as many dimensions as sources, in orthogonal directions."""
    worlds = [replace(world, width=SOURCES, geometry="orthogonal") for world in _worlds(lab)]
    return [_scored(lab, world) for world in lab.progress(worlds, "orthogonal sources")]


def _unknown(lab: Lab) -> list[Unknown]:
    return [_learned(lab, world) for world in lab.progress(_worlds(lab), "unknown dictionary")]


def _learned(lab: Lab, world: planted.Planted) -> Unknown:
    x, unseen, seed = world.sample(ROWS, seed=0).activations, world.sample(ROWS, seed=1), lab.seed
    true, start = torch.as_tensor(world.truth().directions[0]).float(), _random(world, 3)
    if lab.untrained:
        coded, autoencoders = start, [AmortisedEncoder(start, seed=seed)]
    else:
        epochs = 100 if lab.full else 50
        coded = sparse_coding(x, SOURCES, l1=LEARNING_PENALTY, batch=64, tokens=epochs * ROWS, seed=seed).W_dec
        tokens = 200 * ROWS
        autoencoders = [
            pc.dictionaries.train(
                TopK(ACTIVE), x, width=SOURCES, tokens=tokens, batch=256, seed=seed, learning_rate=1e-2, progress=False
            ),
            amortise(start, x, l1=LEARNING_PENALTY, learn_decoder=True, tokens=tokens, learning_rate=1e-2, seed=seed),
        ]
    scores = [_mcc(sae, unseen) for sae in autoencoders]
    best = autoencoders[scores.index(max(scores))]
    inferred = _codes(best.W_dec, unseen.activations - best.b_dec)
    return Unknown(
        dictionary=measures.match(coded, true).mean,
        random_dictionary=measures.match(_random(world, 4), true).mean,
        codes=measures.mcc(_codes(coded, unseen.activations), unseen.coefficients),
        sae=max(scores),
        sae_inferred=measures.mcc(inferred, unseen.coefficients),
    )


def _stream(lab: Lab) -> dict[str, Float[Tensor, " row"]]:
    """Squared error of each unseen row of the model's stream over the mean squared distance from the mean."""
    x, unseen = lab.once(_states)
    sae = measures.random_dictionary(_tied(x)) if lab.untrained else _trained(lab, x)
    random = measures.random_dictionary(sae, seed=lab.seed + 1)
    variance = ((unseen - unseen.mean(0)) ** 2).sum(1).mean()
    codes = {
        "encoder": (sae, sae.encode(unseen)),
        "gradient-pursuit": (sae, gradient_pursuit(sae.W_dec, unseen - sae.b_dec, K).codes),
        "random": (random, gradient_pursuit(random.W_dec, unseen - random.b_dec, K).codes),
    }
    return {name: ((unseen - d.decode(c)) ** 2).sum(1) / variance for name, (d, c) in codes.items()}


def _tied(x: Float[Tensor, "row d"]) -> Dictionary:
    rows = x[:LATENTS]
    return Dictionary(rows, rows.new_zeros(len(rows)), rows, x.mean(0), b_in=x.mean(0), select="topk", k=K)


def _trained(lab: Lab, x: Float[Tensor, "row d"]) -> Dictionary:
    tokens = 2_000_000 if lab.full else 200_000
    return pc.dictionaries.train(TopK(K), x, width=LATENTS, tokens=tokens, seed=lab.seed, progress=False)


def _states(lab: Lab) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row d"]]:
    """Rows of the stream at `SITE` of text such as the model was trained on, to learn from and to measure on."""
    lab.need(lab.model.n_layers >= 3, f"a model of three layers or more, whose {SITE} it reads")
    texts = lab.texts(2000, lab.seed)
    rows = []
    for first in lab.progress(range(0, len(texts), 250), "stream"):
        run = lab.model.run(texts[first : first + 250], record=SITE, stop=True)
        mask = run.mask.clone()
        mask[:, 0] = False  # a first token's state is the same in every document
        rows.append(run[SITE][mask].float())
    held_out = sum(len(part) for part in rows[-2:])
    x = torch.cat(rows)
    return x[:-held_out], x[-held_out:]
