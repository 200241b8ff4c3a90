"""Transcoders Find Interpretable LLM Feature Circuits (Dunefsky, Chlenski and Nanda 2024).

A transcoder says sparsely what an MLP does, from its input to its output, so that a feature's pre-activation is a sum
of weights between features, times activations. Measured: that identity; whether a transcoder finds the units of an MLP
that is known; whether a language model keeps its predictions when all its MLPs are replaced; and whether the few
features on the largest paths to a feature are what it needs.

Targets of circuits are the strongest feature of the last layer at a prompt's last token, where features below make up
its whole pre-activation: a feature that the embedding or the attention makes has no circuit of features to be found.
The paper's comparison with sparse autoencoders by blinded raters is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import patchclamp as pc
from patchclamp.circuits.transcoder_paths import (
    Feature,
    FeatureCircuit,
    FrozenFeatures,
    find_paths,
    freeze,
    terms,
)
from patchclamp.dictionaries import (
    Dictionary,
    ReLU,
    TopK,
    Trainer,
    fidelity,
    measures,
    replaced,
    train,
    without,
)
from patchclamp.dictionaries.parts import Part
from patchclamp.model import Model
from patchclamp.organisms import planted
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.seeds import over_seeds
from patchclamp.studies.study import Study

study = Study(
    name="transcoders",
    paper="Transcoders Find Interpretable LLM Feature Circuits (arXiv:2406.11944)",
    seed="002_c890b7b323703807.txt",
    organism="tales",
)

PLANTED_WIDTH, PLANTED_ROWS = 64, 600_000
PART, WIDTH = TopK(k=24), 384
PATHS, DEPTH, PROMPT = 30, 3, 24


# ── features as sums ──────────────────────────────────────────────────────────────────────────────────────────────────


@study.identity(
    "in a random Llama a feature's pre-activation is the sum of features, heads, embedding, errors and biases",
    tolerance=1e-5,
    control="the sum without what transcoders leave unexplained",
    breaks=1e-3,
)
def random_terms(lab: Lab) -> Measured:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    model = lab.build(config)
    ids = torch.randint(1, 60, (1, 9), generator=lab.generator)
    return _sums([freeze(model, ids, {i: _untrained(24, 48, TopK(k=6), i) for i in range(3)})])


@study.identity(
    "in the model itself too",
    tolerance=1e-5,
    control="the sum without what transcoders leave unexplained",
    breaks=1e-3,
)
def own_terms(lab: Lab) -> Measured:
    transcoders = lab.once(_transcoders, 0)
    return _sums([freeze(lab.model, ids[None], transcoders) for ids in lab.once(_prompts)[:4]])


# ── an MLP whose units are known ──────────────────────────────────────────────────────────────────────────────────────


@study.finding(
    "a transcoder explains a known MLP: fraction of variance unexplained",
    at_most=0.01,
    control="the same transcoder before training",
)
@over_seeds
def explains_the_teacher(lab: Lab) -> Measured:
    held = _world(lab).sample(5000, seed=lab.seed + 999)
    assert held.outputs is not None
    found, start = lab.once(_student), _untrained(24, PLANTED_WIDTH, ReLU(l1=0.1), lab.seed)
    value, control = (measures.fvu(held.outputs, one(held.activations)) for one in (found, start))
    return Measured.number(value, control=control)


@study.finding(
    "its decoder rows are what the MLP's units write: mean cosine after matching",
    at_least=0.98,
    control="random directions",
)
@over_seeds
def decoders_match(lab: Lab) -> Measured:
    found, truth = lab.once(_student), _world(lab).truth()
    random = [measures.random_dictionary(found, seed=seed).W_dec for seed in range(5)]
    return Measured.number(
        measures.match(found.W_dec, truth.decoder).mean,
        control=[measures.match(rows, truth.decoder).mean for rows in random],
    )


@study.finding(
    "its encoder rows are what those units read: mean cosine of the matched ones",
    at_least=0.95,
    control="an autoencoder of the MLP's outputs, matched alike: it knows no input direction",
)
@over_seeds
def encoders_match(lab: Lab) -> Measured:
    return Measured.number(_encoders(lab, lab.once(_student)), control=_encoders(lab, lab.once(_autoencoder)))


# ── a language model ──────────────────────────────────────────────────────────────────────────────────────────────────


@study.finding(
    "the model predicts text by its MLPs: cross-entropy that putting them all to their mean costs (nats)",
    at_least=0.5,
    control="the same architecture with random weights",
)
def mlps_matter(lab: Lab) -> Measured:
    nothing = [pc.scale(f"mlp_out.{layer}", 1.0) for layer in range(lab.model.n_layers)]
    costs = []
    for model in (lab.model, lab.fresh(seed=2)):
        found = fidelity(model, lab.once(_texts, 60, 1), nothing)
        costs.append(found.ce_ablated - found.ce)
    return Measured.number(costs[0], control=costs[1])


@study.finding(
    "with every MLP replaced by its transcoder, cross-entropy recovered from mean ablation",
    at_least=0.95,
    control="the same transcoders before training",
    given=mlps_matter,
)
def swapped(lab: Lab) -> Measured:
    d, texts = lab.model.d_model, lab.once(_texts, 60, 1)
    start = {layer: _untrained(d, WIDTH, PART, layer) for layer in range(lab.model.n_layers)}
    control = fidelity(lab.model, texts, replaced(start)).ce_recovered
    seeds = range(3) if lab.full else range(1)
    found = [fidelity(lab.model, texts, replaced(lab.once(_transcoders, seed))).ce_recovered for seed in seeds]
    return (
        Measured.mean(found, control=[control] * len(found)) if lab.full else Measured.number(found[0], control=control)
    )


@study.finding(
    "without the features on its largest paths a feature is gone: drop of its activation",
    at_least=0.8,
    control="without as many other active features of the layers below",
    given=swapped,
)
def circuits_carry(lab: Lab) -> Measured:
    drops = lab.once(_drops)
    return Measured.mean([d.found for d in drops], control=[d.random for d in drops]) if drops else _nothing()


@study.finding(
    "without as many other features it stays: drop of its activation",
    at_most=0.1,
    control="without the features on its largest paths",
    given=swapped,
)
def others_do_not(lab: Lab) -> Measured:
    drops = lab.once(_drops)
    return Measured.mean([d.random for d in drops], control=[d.found for d in drops]) if drops else _nothing()


@study.figure("The largest paths to one feature of the last layer")
def largest_paths(lab: Lab):
    circuit = lab.once(_drops)[0].circuit if lab.once(_drops) else None
    rows = [] if circuit is None else circuit.rows()[:12]
    return pc.views.bars([row["path"] for row in rows], [row["contribution"] for row in rows], title="paths")


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Drop:
    """By how much of itself a target falls without the features of its circuit, and without as many others."""

    found: float
    random: float
    circuit: FeatureCircuit


class Rows:
    """Pairs (input, output) as a trainer reads them: of a planted teacher, or tensors that are held."""

    def __init__(self, world: planted.Planted | None = None, held: tuple[Tensor, ...] = ()) -> None:
        self.world, self.held = world, held
        self.rows = len(held[0]) if held else None

    def batches(self, size: int, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[tuple[Any, ...]]:
        if self.world is not None:
            for batch in self.world.stream(size, seed=seed, start=start):
                yield batch.activations, batch.outputs
        order = torch.randperm(len(self.held[0]), generator=torch.Generator().manual_seed(seed * 1009 + epoch))
        for rows in order[start:].split(size):
            yield tuple(tensor[rows] for tensor in self.held)


def _world(lab: Lab) -> planted.Planted:
    return planted.teacher(seed=lab.seed)


def _untrained(d: int, width: int, part: Part, seed: int) -> Dictionary:
    return Trainer(part, d_in=d, d_out=d, width=width, seed=seed).dictionary()


def _student(lab: Lab) -> Dictionary:
    part = ReLU(l1=0.1)
    if lab.untrained:
        return _untrained(24, PLANTED_WIDTH, part, lab.seed)
    return train(
        part,
        Rows(_world(lab)),
        width=PLANTED_WIDTH,
        tokens=PLANTED_ROWS,
        batch=256,
        learning_rate=1e-2,
        seed=lab.seed,
        progress=False,
    )


def _autoencoder(lab: Lab) -> Dictionary:
    """Of what the teacher writes alone."""
    y = _world(lab).sample(50_000, seed=lab.seed).outputs
    return train(
        TopK(k=8),
        y,
        width=PLANTED_WIDTH,
        tokens=PLANTED_ROWS // 4,
        batch=256,
        learning_rate=1e-2,
        seed=lab.seed,
        progress=False,
    )


def _encoders(lab: Lab, found: Dictionary) -> float:
    truth = _world(lab).truth()
    pairs = measures.match(found.W_dec, truth.decoder).latent
    return float(torch.cosine_similarity(found.W_enc[pairs], truth.encoder).mean())


def _texts(lab: Lab, n: int, part: int) -> list[str]:
    return lab.texts(n, 1000 * lab.seed + part)


def _prompts(lab: Lab) -> list[Tensor]:
    """The first tokens of documents that nothing was trained on."""
    texts = lab.once(_texts, 240 if lab.full else 64, 2)
    tokens = lab.model.tokens(texts)
    return [ids[mask][:PROMPT] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def _activations(lab: Lab) -> tuple[Tensor, ...]:
    """Inputs of all MLPs, then their outputs."""
    layers = range(lab.model.n_layers)
    sites = [f"{kind}.{layer}" for kind in ("mlp_in", "mlp_out") for layer in layers]
    tokens = lab.model.tokens(lab.once(_texts, 4000 if lab.full else 1200, 0))
    found: list[list[Tensor]] = [[] for _ in sites]
    for ids, mask in zip(tokens.ids.split(64), tokens.mask.split(64), strict=True):
        short = int(mask.sum(1).max())
        run = lab.model.run(ids[:, :short], attention_mask=mask[:, :short], record=sites, stop=True)
        for rows, site in zip(found, sites, strict=True):
            rows.append(run[site][mask[:, :short]])
    return tuple(torch.cat(rows) for rows in found)


def _transcoders(lab: Lab, seed: int) -> dict[int, Dictionary]:
    """One for each MLP of the model; under random weights as they are before training."""
    layers, d = lab.model.n_layers, lab.model.d_model
    if lab.untrained:
        return {layer: _untrained(d, WIDTH, PART, layer) for layer in range(layers)}
    sites = lab.once(_activations)
    return {
        layer: train(
            PART,
            Rows(held=(sites[layer], sites[layers + layer])),
            width=WIDTH,
            tokens=600_000 if lab.full else 200_000,
            batch=512,
            learning_rate=4e-3,
            seed=10 * (lab.seed + seed) + layer,
            progress=False,
        )
        for layer in lab.progress(range(layers), "transcoders")
    }


def _sums(runs: list[FrozenFeatures]) -> Measured:
    """Totals against sums of terms, for the strongest feature of each layer at the last token; control: without the
    errors.
    """
    totals, sums, spoilt = [], [], []
    for frozen in runs:
        for layer in frozen.codes:
            found = terms(frozen, _strongest(frozen, layer))
            totals.append(found.total)
            sums.append(found.total + found.gap)
            spoilt.append(sums[-1] - found.by_kind().get("error", 0.0))
    return Measured.gap(sums, totals, control=(spoilt, totals))


def _strongest(frozen: FrozenFeatures, layer: int) -> Feature:
    codes, last = frozen.codes[layer], frozen.length - 1
    return Feature(layer, last, int(codes.indices[last][codes.values[last].argmax()]))


def _drops(lab: Lab) -> list[Drop]:
    transcoders, model = lab.once(_transcoders, 0), lab.model
    found = []
    for ids in lab.progress(lab.once(_prompts), "circuits"):
        frozen = freeze(model, ids[None], transcoders)
        target = _strongest(frozen, model.n_layers - 1)
        whole = frozen.activation(target)
        if whole <= 0 or terms(frozen, target).by_kind().get("feature", 0.0) < whole:
            continue
        circuit = find_paths(
            frozen, target, top=PATHS, branch=PATHS, depth=DEPTH, keep=lambda node: node.kind in ("feature", "head")
        )
        ends = [path.nodes[0] for path in circuit.paths if path.contribution > 0]
        on = sorted({(node.layer, node.unit) for node in ends if node.kind == "feature"})
        others = [
            (layer, latent)
            for layer in range(target.layer)
            for latent in frozen.codes[layer].counts().nonzero().flatten().tolist()
            if (layer, latent) not in on
        ]
        order = torch.randperm(len(others), generator=lab.generator).tolist()
        drawn = [others[i] for i in order[: len(on)]]
        left = [_left(model, transcoders, ids, target, latents) for latents in (on, drawn)]
        found.append(Drop(1 - left[0] / whole, 1 - left[1] / whole, circuit))
    return found if len(found) > 1 else []


def _left(
    model: Model, transcoders: dict[int, Dictionary], ids: Tensor, target: Feature, latents: list[tuple[int, int]]
) -> float:
    """The target's activation without these features, everything else kept, errors too."""
    site = f"mlp_in.{target.layer}"
    below = {layer: one for layer, one in transcoders.items() if layer < target.layer}
    do = replaced(below, error="keep", change=without(latents))
    x = model.run(ids[None], do=do, record=site, stop=True)[site]
    return float(transcoders[target.layer].encode(x).of(target.latent)[0, target.pos])


def _nothing() -> Measured:
    return Measured.number(float("nan"), control=0.0)
