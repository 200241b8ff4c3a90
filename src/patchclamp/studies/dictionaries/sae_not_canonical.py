"""Sparse Autoencoders Do Not Find Canonical Units of Analysis (Leask, Bussmann et al. 2025).

Two ways to see that a dictionary's latents are not the units of a network. A larger dictionary has latents that a
smaller one lacks altogether (stitching), and its latents are themselves sums of fewer parts (meta-dictionaries).

Stitching is measured on planted dictionaries: the large one reads 48 concepts, a third of them as pairs of variants,
the small one three quarters of the concepts, each as one latent. Two BatchTopK dictionaries of a language model are
swapped into each other as well, but that the cosine says what a latent is good for is no claim about them: the area
under the ROC curve is 0.76, 0.72 and 0.73 with three seeds of `tales`, and 0.73, 0.75 and 0.73 where neither model nor
dictionaries were trained. Meta-dictionaries are measured on decoder rows that are sums of 3 of 40 atoms.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import patchclamp as pc
from patchclamp.dictionaries import BatchTopK, Dictionary, Trainer, measures
from patchclamp.dictionaries.meta import decompose
from patchclamp.dictionaries.stitching import Chain, Seams, compare, roc, stitch, swap
from patchclamp.organisms import planted
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.seeds import over_seeds
from patchclamp.studies.study import Study

study = Study(
    name="sae-not-canonical",
    paper="Sparse Autoencoders Do Not Find Canonical Units of Analysis (arXiv:2502.04878)",
    seed="002_c890b7b323703807.txt",
    organism="tales",
)

WIDTH, WHOLE, SPLIT = 96, 32, 16  # dimensions; concepts of one latent, and of two variants
SHARED_WHOLE, SHARED_SPLIT = 24, 12  # of these the small dictionary knows
ATOMS, PARTS = 40, 3
K = 8
SITE = "resid_post.2"


@study.finding(
    "the cosine to the nearest latent says which latents are new, at the cut that the ROC curve asks for",
    at_least=0.95,
    control="the cosines exchanged among the latents, three times",
)
@over_seeds
def labels_are_right(lab: Lab) -> Measured:
    """Share of latents that are labelled as planted. The curve is that of "inserting it raises the error"."""
    pair = lab.once(_planted)
    seams = compare(pair.small, pair.large, pair.x)

    def right(cosine: Tensor) -> float:
        novel = cosine < roc(cosine, seams.change > 0).threshold
        return float((novel == pair.novel).double().mean())

    exchanged = [seams.cosine[torch.randperm(len(seams.change), generator=lab.generator)] for _ in range(3)]
    return Measured.number(right(seams.cosine), control=[right(cosine) for cosine in exchanged])


@study.finding(
    "inserting a new latent lowers the error of the small dictionary",
    at_least=1.0,
    control="inserting a latent that says again what it says already",
)
@over_seeds
def new_latents_help(lab: Lab) -> Measured:
    pair = lab.once(_planted)
    change = compare(pair.small, pair.large, pair.x).change
    return Measured.share(change[pair.novel] < 0, control=change[~pair.novel] < 0)


@study.identity(
    "swapped component by component, the small dictionary becomes the large one: its error at the end",
    tolerance=1e-6,
    control="half way",
    breaks=1e-4,
)
def chain_ends_at_the_large(lab: Lab) -> Measured:
    """As a share of the activations' variance; on planted dictionaries, and on dictionaries of the model."""
    pair = lab.once(_planted)
    ends, others, errors = [], [], []
    for small, large, x in ((pair.small, pair.large, pair.x), (*lab.once(_of_model), lab.once(_states)[1])):
        chain, spread = swap(small, large, x, threshold=0.7), float(x.double().var(0, correction=0).sum())
        ends.append(float(chain.error[-1]) / spread)
        others.append(float(chain.error[len(chain.error) // 2]) / spread)
        errors.append(measures.fvu(x, large(x)))
    return Measured.gap(ends, errors, control=(others, errors))


@study.identity(
    "what inserting a latent does, by formula for all at once, is what the stitched dictionary measures",
    tolerance=1e-4,
    control="the latents in another order",
    breaks=1e-3,
)
def insertions_are_exact(lab: Lab) -> Measured:
    pair = lab.once(_planted)
    seams, before = compare(pair.small, pair.large, pair.x), _error(pair.small, pair.x)
    chosen = list(range(0, pair.large.width, 4))
    keep = range(pair.small.width)
    measured = [_error(stitch(pair.small, pair.large, keep=keep, add=[j]), pair.x) - before for j in chosen]
    return Measured.gap(seams.change[chosen], measured, control=(seams.change[chosen].flip(0), measured))


@study.finding(
    "the large dictionary of a language model has learnt: share of the variance that it explains",
    at_least=0.7,
    control="a random dictionary",
)
@over_seeds
def model_dictionary_works(lab: Lab) -> Measured:
    (_, large), (_, x) = lab.once(_of_model), lab.once(_states)
    random = measures.random_dictionary(large, seed=lab.seed)
    return Measured.number(1 - measures.fvu(x, large(x)), control=1 - measures.fvu(x, random(x)))


@study.finding(
    "a meta-dictionary of composed decoder rows finds the atoms: mean cosine of each with the nearest part",
    at_least=0.95,
    control="as many random directions",
)
@over_seeds
def parts_are_the_atoms(lab: Lab) -> Measured:
    atoms, (parts, _, _) = _atoms(lab), lab.once(_parts)
    return Measured.mean(_nearest(atoms, parts), control=_nearest(atoms, measures.random_dictionary(parts, lab.seed)))


@study.finding(
    "of the atoms, nearly all are found, with a cosine above 0.9",
    at_least=0.95,
    control="as many random directions",
)
@over_seeds
def atoms_are_recalled(lab: Lab) -> Measured:
    atoms, (parts, _, _) = _atoms(lab), lab.once(_parts)
    random = measures.random_dictionary(parts, lab.seed)
    return Measured.share(_nearest(atoms, parts) > 0.9, control=_nearest(atoms, random) > 0.9)


@study.finding(
    "parts explain the variance of composed rows",
    at_least=0.5547,
    control="the same training on random rows",
)
@over_seeds
def parts_explain_rows(lab: Lab) -> Measured:
    """The threshold is what the paper's meta-dictionary explained of a dictionary of GPT-2."""
    _, explained, random = lab.once(_parts)
    return Measured.number(explained, control=random)


@study.finding(
    "rows that are no sums of few parts are not explained: share of the variance of random rows",
    at_most=0.4,
    control="composed rows",
    given=parts_explain_rows,
)
@over_seeds
def random_rows_have_no_parts(lab: Lab) -> Measured:
    _, explained, random = lab.once(_parts)
    return Measured.number(random, control=explained)


@study.finding(
    "a BatchTopK dictionary keeps its number of active latents when a threshold takes the batch's place: deviation",
    at_most=0.05,
    control="every positive latent",
)
@over_seeds
def threshold_keeps_sparsity(lab: Lab) -> Measured:
    """|L0 / k - 1| on rows that were not trained on."""
    dictionary, x = lab.once(_batch_topk)
    positive = (dictionary.pre_activations(x) > 0).sum(1).double()
    return Measured.number(
        abs(float(dictionary.encode(x).l0().mean()) / K - 1), control=abs(float(positive.mean()) / K - 1)
    )


@study.identity(
    "with the threshold a row's codes are its own, whatever rows come with it",
    tolerance=1e-5,
    control="the rule of training: k times as many as there are rows, over the batch",
    breaks=0.1,
)
def codes_are_a_rows_own(lab: Lab) -> Measured:
    dictionary, x = lab.once(_batch_topk)
    x = x[:256]
    alone = torch.cat([dictionary.encode(row).dense() for row in x.split(1)])
    pre = dictionary.pre_activations(x)
    largest = [_over_the_batch(rows) for rows in (pre, pre[pre.sum(1).argsort(descending=True)[:32]])]
    first = pre.sum(1).argsort(descending=True)[:32]
    return Measured.gap(dictionary.encode(x).dense(), alone, control=(largest[0][first], largest[1]))


@study.figure("Error from the small to the large dictionary, component by component, those that help most first")
def chain_of_swaps(lab: Lab):
    pair = lab.once(_planted)
    chain: Chain = swap(pair.small, pair.large, pair.x)
    spread = float(pair.x.var(0, correction=0).sum())
    steps = list(range(len(chain.error)))
    curves = {"fraction of variance unexplained": (chain.error / spread).tolist()}
    return pc.views.lines(steps, curves, title="from the small dictionary to the large")


@study.figure("Latents of the large dictionary of a language model: cosine to the small one's, and what inserting does")
def insertions_on_a_model(lab: Lab):
    seams = lab.once(_seams_of_model)
    return pc.views.scatter(
        seams.cosine.numpy(), seams.change.numpy(), title="inserted latents", x_title="cosine to the nearest latent"
    )


# ── planted dictionaries ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pair:
    """A small and a large dictionary, activations, and which latents of the large one are new."""

    small: Dictionary
    large: Dictionary
    x: Float[Tensor, "row d"]
    novel: Bool[Tensor, " latent"]


def _planted(lab: Lab) -> Pair:
    """Orthogonal concepts; of one that is split, the variants lie at a cosine of 0.93 to it on either side."""
    generator = lab.generator
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q.T
    whole, split, aside = axes.split([WHOLE, SPLIT, WIDTH - WHOLE - SPLIT])
    variants = torch.nn.functional.normalize(
        torch.stack([split + 0.4 * aside[:SPLIT], split - 0.4 * aside[:SPLIT]], 1), dim=2
    )
    features = torch.cat([whole, variants.flatten(0, 1)])
    world = planted.superposition(len(features), WIDTH, active=4, seed=lab.seed)
    x = world.sample(20_000 if lab.full else 5_000, seed=lab.seed + 1).coefficients @ features
    concepts = torch.cat([whole[:SHARED_WHOLE], split[:SHARED_SPLIT]])
    novel = torch.ones(len(features), dtype=torch.bool)
    novel[:SHARED_WHOLE] = False
    novel[WHOLE : WHOLE + 2 * SHARED_SPLIT] = False
    if lab.untrained:
        draw = [
            torch.nn.functional.normalize(torch.randn(one.shape, generator=generator), dim=1)
            for one in (concepts, features)
        ]
        return Pair(_reading(draw[0], draw[0]), _reading(draw[1], draw[1]), x, novel)
    jittered = [one + 0.02 * torch.randn(one.shape, generator=generator) for one in (concepts, features)]
    small, large = (
        _reading(torch.linalg.pinv(one).T, torch.nn.functional.normalize(rows, dim=1))
        for one, rows in zip((concepts, features), jittered, strict=True)
    )
    return Pair(small, large, x, novel)


def _reading(encoder: Float[Tensor, "width d"], decoder: Float[Tensor, "width d"]) -> Dictionary:
    width, d = decoder.shape
    return Dictionary(encoder, torch.zeros(width), decoder, torch.zeros(d), threshold=0.1)


def _error(dictionary: Dictionary, x: Float[Tensor, "row d"]) -> float:
    return float(((x - dictionary(x)).double() ** 2).sum(1).mean())


# ── dictionaries of a language model ──────────────────────────────────────────────────────────────────────────────────


def _states(lab: Lab) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row d"]]:
    """Rows of the model's own text to learn from, and others to measure on; each document's first token left out."""
    lab.need(lab.model.n_layers >= 3, f"a model of three layers or more, whose {SITE} it reads")
    rows = []
    documents = lab.texts(2000, lab.seed)
    for first in lab.progress(range(0, len(documents), 250), "activations"):
        run = lab.model.run(documents[first : first + 250], record=SITE, stop=SITE)
        mask = run.mask.clone()
        mask[:, 0] = False
        rows.append(run[SITE][mask])
    found = torch.cat(rows)
    return found[:-4000], found[-4000:]


def _of_model(lab: Lab) -> tuple[Dictionary, Dictionary]:
    """A small and a large BatchTopK dictionary of the model's stream, one eight times the other."""
    x, _ = lab.once(_states)
    small, large = (_learnt(lab, x, width, steps=600) for width in (64, 512))
    return small, large


def _seams_of_model(lab: Lab) -> Seams:
    """Of the latents of the large dictionary that are active at all: to insert the others does nothing."""
    small, large = lab.once(_of_model)
    _, x = lab.once(_states)
    seams = compare(small, large, x)
    alive = large.encode(x).counts() > 0
    return Seams(seams.cosines[alive], seams.change[alive])


def _learnt(lab: Lab, x: Tensor, width: int, steps: int, k: int = K, batch: int = 512) -> Dictionary:
    trainer = Trainer(BatchTopK(k=k), d_in=x.shape[1], width=width, steps=steps, seed=lab.seed, learning_rate=3e-3)
    if not lab.untrained:
        for _ in lab.progress(range(steps), f"{width} latents"):
            trainer.step(x[torch.randint(len(x), (batch,), generator=lab.generator)])
    return trainer.dictionary()


def _batch_topk(lab: Lab) -> tuple[Dictionary, Float[Tensor, "row d"]]:
    """A dictionary of planted activations, and rows that it has not seen."""
    world = planted.superposition(features=256, width=64, active=K, seed=lab.seed)
    x = world.sample(50_000, seed=lab.seed + 1).activations
    return _learnt(lab, x, 320, steps=1500), world.sample(5_000, seed=lab.seed + 2).activations


def _over_the_batch(pre: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """The k largest values for each row, taken over all rows together."""
    least = pre.relu().flatten().topk(K * len(pre)).values[-1]
    return pre * (pre >= least)


# ── meta-dictionaries ─────────────────────────────────────────────────────────────────────────────────────────────────


def _composed(lab: Lab) -> planted.Planted:
    return planted.sparse_codes(ATOMS, 64, PARTS, coefficients=planted.Constant(), seed=lab.seed)


def _atoms(lab: Lab) -> Float[Tensor, "atom d"]:
    return _composed(lab).truth().directions[0]


def _parts(lab: Lab) -> tuple[Dictionary, float, float]:
    """The meta-dictionary, what it explains of composed rows, and what another does of random rows."""
    rows = _composed(lab).sample(1000, seed=lab.seed + 1).activations
    if lab.untrained:
        rows = torch.nn.functional.normalize(rows, dim=1)
        parts = Trainer(BatchTopK(k=PARTS), d_in=64, width=ATOMS, seed=lab.seed).dictionary()
        explained = 1 - measures.fvu(rows, parts(rows))
        return parts, explained, explained
    found = decompose(rows, width=ATOMS, k=PARTS, seed=lab.seed, progress=False)
    return found.parts, found.explained, found.random


def _nearest(atoms: Float[Tensor, "atom d"], parts: Dictionary) -> Float[Tensor, " atom"]:
    return (atoms @ torch.nn.functional.normalize(parts.W_dec, dim=1).T).max(1).values
