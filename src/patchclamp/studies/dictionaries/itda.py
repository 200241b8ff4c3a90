"""Inference-Time Decomposition of Activations (Leask, Nanda and Al Moubayed 2025).

A dictionary without training: its atoms are activations that were seen, and matching pursuit finds the codes. The paper
claims about a hundredth of a sparse autoencoder's training time at nearly its reconstruction, and that two models can
be compared by the tokens that their dictionaries keep.

Time and reconstruction are measured on planted activations (64 features in 32 dimensions, 8 active), beside a BatchTopK
autoencoder of as many latents and the same number active. Time is that of the processor, which other work on the
machine does not lengthen. The comparison of models is between three seeds of `tales`.
"""

import time
from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

import patchclamp as pc
from patchclamp.dictionaries import ITDA, BatchTopK, Dictionary, Trainer, measures
from patchclamp.dictionaries.itda import (
    grow,
    jaccard,
    layer_matching,
    linear_cka,
    relative_similarity,
    similarity,
    svcca,
)
from patchclamp.dictionaries.pursuit import matching_pursuit
from patchclamp.organisms import planted
from patchclamp.studies.behaviour import answers
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.seeds import over_seeds
from patchclamp.studies.study import Study

study = Study(
    name="itda",
    paper="Inference-Time Decomposition of Activations (ITDA): A Scalable Approach to Interpreting Large Language "
    "Models (arXiv:2505.17769)",
    seed="002_c890b7b323703807.txt",
    organism="tales",
)

K, LATENTS = 8, 256
SIBLINGS = ("tales", "tales-1", "tales-2")
SITE_K, SITE_THRESHOLD = 8, 0.1


@study.finding(
    "the autoencoder that ITDA is compared with has learnt: share of the planted features that it recovers",
    at_least=0.75,
    control="a random dictionary",
)
@over_seeds
def autoencoder_works(lab: Lab) -> Measured:
    truth, sae = _world(lab).truth().directions[0], lab.once(_trained).dictionary
    random = measures.random_dictionary(sae, seed=lab.seed)
    return Measured.number(
        measures.recovered(sae.W_dec, truth, above=0.8), control=measures.recovered(random.W_dec, truth, above=0.8)
    )


@study.finding(
    "ITDA explains as much of the variance as the autoencoder: its share less the autoencoder's",
    at_least=-0.02,
    control="matching pursuit over as many random directions, three times",
    given=autoencoder_works,
)
@over_seeds
def explains_as_much(lab: Lab) -> Measured:
    atoms, sae = lab.once(_grown).atoms, lab.once(_trained).dictionary
    random = [_random_atoms(_world(lab).width, atoms.width, 10 * lab.seed + draw) for draw in range(3)]
    whole = _explained(lab, sae)
    return Measured.number(_explained(lab, atoms) - whole, control=[_explained(lab, other) - whole for other in random])


@study.finding(
    "ITDA takes a twentieth of the autoencoder's time at most",
    at_most=0.05,
    control="the share of its own time after which the autoencoder explains as much as ITDA less 0.02",
    given=explains_as_much,
)
@over_seeds
def takes_little_time(lab: Lab) -> Measured:
    """Processor time; NaN where nothing was trained."""
    grown, trained = lab.once(_grown), lab.once(_trained)
    if not trained.seconds:
        return Measured.number(float("nan"), control=1.0)
    enough = _explained(lab, grown.atoms) - 0.02
    reached = next((spent for spent, explained in trained.curve if explained >= enough), trained.seconds)
    return Measured.number(grown.seconds / trained.seconds, control=reached / trained.seconds)


@study.identity(
    "the squared norm is the sum of what the steps took and what is left",
    tolerance=1e-4,
    control="the same sum with atoms in each other's place",
    breaks=1e-2,
)
def energy_is_kept(lab: Lab) -> Measured:
    """As a share of the squared norm, on activations of the model."""
    x, atoms = lab.once(_states)[-1].flatten(0, 1), lab.once(_site_atoms)
    found = matching_pursuit(x, atoms.W_dec, SITE_K)
    whole = (x**2).sum(1)
    kept = found.energy.sum(1) + (found.residual**2).sum(1)
    wrong = x - found.codes.dense().roll(1, 1) @ atoms.W_dec
    spoilt = found.energy.sum(1) + (wrong**2).sum(1)
    one = torch.ones_like(whole)
    return Measured.gap(kept / whole, one, control=(spoilt / whole, one))


@study.identity("what is left never grows from one step to the next", tolerance=1e-5)
def residual_shrinks(lab: Lab) -> Measured:
    x, atoms = lab.once(_states)[-1].flatten(0, 1), lab.once(_site_atoms)
    left = torch.stack([matching_pursuit(x, atoms.W_dec, k).residual.norm(dim=1) for k in (1, 2, 4, 8)], 1)
    growth = (left.diff(dim=1) / x.norm(dim=1, keepdim=True)).clamp_min(0)
    return Measured.gap(growth, torch.zeros_like(growth))


@study.identity(
    "each atom is the activation, recorded anew, of the token that it names",
    tolerance=1e-4,
    control="the token before it",
    breaks=1e-2,
)
def atoms_are_recorded_again(lab: Lab) -> Measured:
    """Each prompt alone, up to the token, where the atoms came of a batch of whole documents."""
    tokens, atoms = lab.once(_tokens), lab.once(_site_atoms)
    site = lab.model.sites("resid_post.*")[-1]
    found: list[list[Tensor]] = [[], []]
    for document, position in atoms.sources.tolist()[:64]:
        states = lab.model.run(tokens[document : document + 1, : position + 1], record=site)[site][0]
        for rows, place in zip(found, (position, position - 1 if position else 0), strict=True):
            rows.append(torch.nn.functional.normalize(states[place], dim=0))
    again, before = (torch.stack(rows) for rows in found)
    return Measured.gap(again, atoms.W_dec[:64], control=(before, atoms.W_dec[:64]))


@study.identity(
    "a rotated copy of a model keeps the same tokens: Jaccard similarity 1",
    tolerance=0.0,
    control="a copy that is stretched too",
    breaks=0.05,
)
def rotation_changes_nothing(lab: Lab) -> Measured:
    x = lab.once(_states)[-1].flatten(0, 1).double()
    d = x.shape[1]
    rotation = torch.linalg.qr(torch.randn(d, d, generator=lab.generator, dtype=torch.float64)).Q
    stretched = x @ rotation * torch.linspace(0.2, 3, d, dtype=torch.float64)
    alike = [similarity(x, y, k=SITE_K, threshold=SITE_THRESHOLD).jaccard for y in (x @ rotation, stretched)]
    return Measured.gap(alike[0], 1.0, control=(alike[1], 1.0))


@study.finding("the model has learnt what it was taught", at_least=0.9, control="the same answers on corrupted prompts")
def model_has_learnt(lab: Lab) -> Measured:
    """What the next claim is given; of a model without siblings it is not asked."""
    lab.need(lab.truth.name == SIBLINGS[0], "a model of which there are other seeds: tales")
    return answers(lab)


@study.finding(
    "of two seeds of a model, layers keep tokens most like those of the same layer of the other",
    at_least=0.5,
    control="the same where the other's tokens come in random order",
    given=model_has_learnt,
)
def layers_match(lab: Lab) -> Measured:
    """Share of layers, from both sides of each pair of seeds: a quarter by chance, so that half is twice as many. That
    ITDA matches better than CKA, SVCCA or relative representations is not claimed here; the figure compares them.
    """
    table = lab.once(_tables)
    return Measured.number(table["ITDA"][0], control=table["ITDA, random order"][0])


@study.figure(
    "Share of layers of one seed that are most similar to the same layer of another, by measure of similarity"
)
def matching(lab: Lab):
    table = {name: share for name, (share, _) in lab.once(_tables).items()}
    return pc.views.bars(list(table), list(table.values()), title="which layer is which?")


@study.figure("Jaccard similarity of the tokens that two seeds keep, by layer")
def similarity_by_layer(lab: Lab):
    alike = lab.once(_tables)["ITDA"][1]
    layers = [str(layer) for layer in range(len(alike))]
    array = xr.DataArray(alike.numpy(), dims=("layer", "layer of the other"))
    return pc.views.heatmap(array, x_labels=layers, y_labels=layers, title="tokens in common")


# ── planted activations ───────────────────────────────────────────────────────────────────────────────────────────────


def _world(lab: Lab) -> planted.Planted:
    return planted.superposition(features=64, width=32, active=K, seed=lab.seed)


@dataclass(frozen=True)
class Grown:
    """Atoms, and the processor's seconds that they took."""

    atoms: ITDA
    seconds: float


@dataclass(frozen=True)
class Trained:
    """An autoencoder, the processor's seconds of its steps, and what it explained after how many of them."""

    dictionary: Dictionary
    seconds: float
    curve: tuple[tuple[float, float], ...]


def _explained(lab: Lab, dictionary: Dictionary) -> float:
    x = _world(lab).sample(4000, seed=lab.seed + 2).activations
    return 1 - measures.fvu(x, dictionary(x))


def _random_atoms(d: int, count: int, seed: int) -> ITDA:
    generator = torch.Generator().manual_seed((seed * 2654435761 + 0x17DA) % 2**63)
    rows = torch.nn.functional.normalize(torch.randn(count, d, generator=generator), dim=1)
    return ITDA(rows, torch.full((count, 2), -1), K)


def _grown(lab: Lab) -> Grown:
    """The quicker of three growths, since the first one also fills caches; random atoms where nothing is learnt."""
    world = _world(lab)
    if lab.untrained:
        return Grown(_random_atoms(world.width, LATENTS, 10 * lab.seed), 0.0)
    rows = world.sample(20_000, seed=lab.seed + 1).activations
    seconds = []
    for _ in range(3):
        start = time.process_time()
        atoms = grow(rows, k=K, threshold=0.15, most=LATENTS, progress=False)
        seconds.append(time.process_time() - start)
    return Grown(atoms, min(seconds))


def _trained(lab: Lab) -> Trained:
    batch, steps = 1024, 3200 if lab.full else 1600
    world = _world(lab)
    trainer = Trainer(BatchTopK(k=K), d_in=world.width, width=LATENTS, steps=steps, seed=lab.seed, learning_rate=1e-2)
    seconds, curve = 0.0, []
    if not lab.untrained:
        for step, rows in zip(
            lab.progress(range(1, steps + 1), "autoencoder"), world.stream(batch, lab.seed + 1), strict=False
        ):
            start = time.process_time()
            trainer.step(rows.activations)
            seconds += time.process_time() - start
            if step % (steps // 50) == 0:
                curve.append((seconds, _explained(lab, trainer.dictionary())))
    return Trained(trainer.dictionary(), seconds, tuple(curve))


# ── seeds of a language model ─────────────────────────────────────────────────────────────────────────────────────────


def _tokens(lab: Lab) -> Tensor:
    """Documents of the model's own text, [document, position], as many tokens of each."""
    length, wanted = 16, 256 if lab.full else 96
    texts = lab.texts((8 if lab.truth.writer else 2) * wanted, lab.seed)  # an organism's are short
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer")
    ids = [lab.model.tokenizer(text)["input_ids"] for text in texts]
    rows = [row[:length] for row in ids if len(row) >= length][:wanted]
    lab.need(len(rows) >= 16, f"a model that writes texts of {length} tokens, to measure on")
    return torch.tensor(rows)


def _states(lab: Lab) -> list[Float[Tensor, "document position d"]]:
    return _states_of(lab, lab.model)


def _states_of(lab: Lab, model: pc.Model) -> list[Float[Tensor, "document position d"]]:
    """The stream after each layer."""
    sites = model.sites("resid_post.*")
    run = model.run(lab.once(_tokens), record=sites)
    return [run[site] for site in sites]


def _site_atoms(lab: Lab) -> ITDA:
    return grow(lab.once(_states)[-1], k=SITE_K, threshold=SITE_THRESHOLD, progress=False)


def _tables(lab: Lab) -> dict[str, tuple[float, Float[Tensor, "layer layer"]]]:
    """By measure: the share of layers that are matched, and the similarity of layers, both over pairs of seeds."""
    lab.need(lab.truth.name == SIBLINGS[0], "a model of which there are other seeds: tales")
    models = [lab.model, *map(lab.load, SIBLINGS[1:])]
    states = [[x.flatten(0, 1) for x in _states_of(lab, model)] for model in models]
    order = torch.randperm(len(states[0][0]), generator=lab.generator)

    def grown(x: Tensor) -> ITDA:
        return grow(x, k=SITE_K, threshold=SITE_THRESHOLD, progress=False)

    kept = [[grown(x) for x in layers] for layers in states]
    disordered = [[grown(x[order]) for x in layers] for layers in states]
    pairs = [(a, b) for a in range(len(models)) for b in range(a)]
    tables = {
        "ITDA": [_table(kept[a], kept[b], jaccard) for a, b in pairs],
        "ITDA, random order": [_table(kept[a], disordered[b], jaccard) for a, b in pairs],
        "CKA": [_table(states[a], states[b], linear_cka) for a, b in pairs],
        "SVCCA": [_table(states[a], states[b], svcca) for a, b in pairs],
        "relative": [_table(states[a], states[b], relative_similarity) for a, b in pairs],
    }
    return {
        name: (sum(map(layer_matching, found)) / len(found), torch.stack(found).mean(0))
        for name, found in tables.items()
    }


def _table(mine: list, theirs: list, measure) -> Float[Tensor, "layer layer"]:
    return torch.tensor([[measure(x, y) for y in theirs] for x in mine])
