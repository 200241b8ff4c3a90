"""Is this the subspace you are looking for? (Makelov, Lange and Nanda 2024.)

Patching one direction of a component can change the answer although the component carries nothing: the direction is the
sum of one that goes with the concept and is read by nothing, and of one that is read and never moves (a dormant
pathway). The paper shows it in a toy, in an MLP between the S-inhibition heads and the name movers of GPT-2, and in
factual recall, where it is also why rank-one edits work at layers at which nothing is stored.

Here the network finds the one of two names that was not said twice, in components that are known: head 1.3 has the
subject, head 2.0 the answer, and the MLP between them carries nothing. It is replaced by one of random neurons that
come in pairs, equal going in and opposite going out, so that it writes exactly zero on every input.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import patchclamp as pc
from patchclamp.model import Model, wrap
from patchclamp.patching.illusion import Illusion, illusion
from patchclamp.patching.pairs import Pairs
from patchclamp.patching.subspace import Subspace, das, mean_direction, random_direction, rank_one_edit
from patchclamp.studies.behaviour import answer_logits
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study
from patchclamp.tasks import Task

NAME = "planted-circuit:duplicate-removal"
CARRIER = "planted-circuit:induction"  # of which MLP 1 is known to carry the answer

study = Study(
    name="subspace-illusion",
    paper="Is This the Subspace You Are Looking For? An Interpretability Illusion for Subspace Activation Patching "
    "(arXiv:2311.17030)",
    seed="002_c890b7b323703807.txt",
    organism="planted-circuit:duplicate-removal",
)

STEPS = 40
"""Of the alignment search."""
DRAWN = 8
"""Random directions that each is compared with."""


@study.finding("the network does the task", at_least=0.95, control="the same answers on the corrupted prompts")
def does_the_task(lab: Lab) -> Measured:
    """With an MLP of random doubled neurons in place of the one that carries nothing."""
    model, task = _doubled(lab, 0), _two_names(lab, 1)
    right, control = (pc.metrics.top1(answer_logits(model, task, side), task) for side in ("clean", "corrupt"))
    return Measured.share(right, control=control)


@study.finding(
    "alignment search finds a direction of an MLP that carries nothing, along which patching moves the answer",
    at_least=0.5,
    control="random directions",
    given=does_the_task,
)
def search_finds_a_direction(lab: Lab) -> Measured:
    tests = lab.once(_of_the_mlp)
    return Measured.mean([t.whole for t in tests], control=[effect for t in tests for effect in t.random])


@study.finding(
    "of its two parts, the one that is read moves the answer by next to nothing alone",
    at_most=0.2,
    control="the same for a direction found in the residual stream",
    given=search_finds_a_direction,
)
def the_read_part_does_nothing(lab: Lab) -> Measured:
    return _both(lab, "row")


@study.finding(
    "nor does the other, in the null space of what reads the MLP",
    at_most=0.01,
    control="the whole direction",
    given=search_finds_a_direction,
)
def the_null_part_does_nothing(lab: Lab) -> Measured:
    tests = lab.once(_of_the_mlp)
    return Measured.mean([t.null for t in tests], control=[t.whole for t in tests])


@study.finding(
    "nor does the whole MLP",
    at_most=0.2,
    control="the whole residual stream",
    given=search_finds_a_direction,
)
def the_component_does_nothing(lab: Lab) -> Measured:
    return _both(lab, "component")


@study.finding(
    "the part that is read is dormant: how far runs differ along it, as a share of how far they differ",
    at_most=0.05,
    control="the same for a direction of an MLP that carries the answer",
    given=search_finds_a_direction,
)
def the_read_part_is_dormant(lab: Lab) -> Measured:
    tests, carriers = lab.once(_of_the_mlp), lab.once(_of_the_carrier)
    return Measured.mean([t.row_moves for t in tests], control=[t.row_moves for t in carriers])


@study.finding(
    "a direction that alignment search finds in the residual stream moves the answer, and nothing of it is unread",
    at_least=0.9,
    control="the read part of the MLP's direction",
    given=does_the_task,
)
def the_stream_passes(lab: Lab) -> Measured:
    stream, tests = lab.once(_of_the_stream), lab.once(_of_the_mlp)
    return Measured.mean([t.row for t in stream], control=[t.row for t in tests])


@study.finding(
    "in an MLP that carries the answer, the read part keeps the effect of the difference of means",
    at_least=0.9,
    control="the share that is kept of the direction of the MLP that carries nothing",
    given=does_the_task,
)
def a_true_feature_passes(lab: Lab) -> Measured:
    carriers, tests = lab.once(_of_the_carrier), lab.once(_of_the_mlp)
    return Measured.mean([t.kept for t in carriers], control=[t.kept for t in tests])


@study.finding(
    "the test calls the one illusory and the others faithful, in every draw",
    at_least=1.0,
    control="random directions of the MLP",
    given=does_the_task,
)
def verdicts(lab: Lab) -> Measured:
    """Share of right verdicts; a random direction has no effect, and is neither."""
    found = [t.verdict == "illusory" for t in lab.once(_of_the_mlp)]
    found += [t.verdict == "faithful" for t in (*lab.once(_of_the_stream), *lab.once(_of_the_carrier))]
    control = [t.verdict != "no effect" for t in lab.once(_of_random_directions)]
    return Measured.number(sum(found) / len(found), control=sum(control) / len(control))


@study.identity(
    "the paper's toy: the direction moves the output all the way, its parts and the component not at all, the skip all",
    tolerance=1e-6,
    control="the same toy, in which what reads the component reads the concept too",
    breaks=0.3,
)
def exact_toy(lab: Lab) -> Measured:
    """y = 2 h2 + c with h = (c, 0); v = (1, 1) / sqrt 2."""
    expected = [1.0, 0.0, 0.0, 0.0, 1.0]
    return Measured.gap(_toy_effects(0.0), expected, control=(_toy_effects(1.0), expected))


@study.identity(
    "the toy y = h2 + h3 with h = (c, 0, c): (e1 + e2) / sqrt 2 moves y half way, e1 and e2 alone not, e3 all the way",
    tolerance=1e-6,
)
def one_output_toy(lab: Lab) -> Measured:
    model = wrap(_Sum(), name="y = h2 + h3")
    pairs = _plain_pairs(model)
    directions = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    source = pairs.activations("module:h")[1]
    effects = [pairs.effect([Subspace.spanned("module:h", v, model).patch(source)]) for v in directions]
    return Measured.gap(effects, [0.5, 0.0, 0.0, 1.0])


@study.identity(
    "patching one direction of an MLP is a rank-one edit of the matrix that reads it",
    tolerance=1e-6,
    control="the edit made for another prompt",
    breaks=1e-4,
)
def patch_is_an_edit(lab: Lab) -> Measured:
    """What the MLP adds to the stream at the last token, in float64, under the patch and with edited weights."""
    tokens = _any_tokens(lab)
    model = wrap(copy.deepcopy(lab.model.hf).double(), name="in float64")
    layer = model.n_layers // 2
    site, out = f"mlp_post.{layer}", f"mlp_out.{layer}"
    base, other, source = (model.run(row[None], record=site) for row in tokens[:3])
    pairs = Pairs(model, tokens[:1], tokens[2:3], measure=lambda logits: logits[:, -1, 0])
    found = random_direction(pairs, site, seed=lab.seed)
    patched = model.run(tokens[:1], record=out, do=[found.patch(source, pos=-1)])[out][0, -1]

    def edited(key: Tensor) -> Tensor:
        change = rank_one_edit(model.weights.W_out[layer], key, source[site][0, -1], found)
        changed = wrap(copy.deepcopy(model.hf), name="edited")
        with torch.no_grad():
            changed.weights.W_out[layer].add_(change)
        return changed.run(tokens[:1], record=out)[out][0, -1]

    return Measured.gap(patched, edited(base[site][0, -1]), control=(patched, edited(other[site][0, -1])))


@study.identity("a subspace of all directions is the whole activation", tolerance=1e-5)
def everything_is_the_activation(lab: Lab) -> Measured:
    tokens, layer = _any_tokens(lab), lab.model.n_layers // 2
    site = lab.model.sites(f"mlp_post.{layer}")[0]
    source = lab.model.run(tokens.flip(0), record=site)
    whole = Subspace(site, torch.eye(source[site].shape[-1], dtype=lab.model.dtype, device=lab.model.device))
    by_subspace, by_patch = (
        lab.model.run(tokens, do=[do]).logits for do in (whole.patch(source), pc.patch(site, source))
    )
    return Measured.gap(by_subspace, by_patch)


@study.figure("Effect of each direction, of its parts and of the whole activation")
def effects(lab: Lab):
    import xarray as xr

    named = {"MLP that carries nothing": _of_the_mlp, "stream": _of_the_stream, "MLP that carries": _of_the_carrier}
    kinds = ("whole", "row", "null", "component")
    rows = [[getattr(lab.once(work)[0], kind) for kind in kinds] for work in named.values()]
    coords = {"direction": list(named), "patched": ["direction", "read part", "null part", "whole activation"]}
    return pc.views.heatmap(xr.DataArray(rows, dims=("direction", "patched"), coords=coords), title="effects")


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


def _draws(lab: Lab) -> range:
    return range(10 if lab.full else 3)


def _both(lab: Lab, name: str) -> Measured:
    mlp, stream = ([getattr(t, name) for t in lab.once(work)] for work in (_of_the_mlp, _of_the_stream))
    return Measured.mean(mlp, control=stream)


def _of_the_mlp(lab: Lab) -> list[Illusion]:
    return [_searched(lab, draw, "mlp_post.1") for draw in lab.progress(list(_draws(lab)), "directions of the MLP")]


def _of_the_stream(lab: Lab) -> list[Illusion]:
    return [_searched(lab, draw, "resid_post.1") for draw in lab.progress(list(_draws(lab)), "of the stream")]


def _searched(lab: Lab, draw: int, site: str) -> Illusion:
    """Found on some pairs, tested on others."""
    model = _doubled(lab, draw)
    train, test = (Pairs.of(model, _two_names(lab, 2 * draw + side)) for side in (0, 1))
    found = das(train, site, pos=-1, steps=STEPS, seed=1000 * lab.seed + draw)
    return illusion(test, found, pos=-1, random=DRAWN, seed=lab.seed)


def _of_random_directions(lab: Lab) -> list[Illusion]:
    pairs = Pairs.of(_doubled(lab, 0), _two_names(lab, 1))
    return [
        illusion(pairs, random_direction(pairs, "mlp_post.1", seed=seed), pos=-1, random=1, seed=seed)
        for seed in range(5)
    ]


def _of_the_carrier(lab: Lab) -> list[Illusion]:
    """Differences of means at the MLP that turns the letter found into the capital that is answered."""
    _known(lab)
    model, found = lab.load(CARRIER), []
    for draw in _draws(lab):
        train, test = (Pairs.of(model, _two_letters(lab, 2 * draw + side)) for side in (0, 1))
        direction = mean_direction(train, "mlp_post.1", pos=-1)
        found.append(illusion(test, direction, pos=-1, random=DRAWN, seed=lab.seed))
    return found


def _known(lab: Lab) -> None:
    lab.need(lab.truth.name == NAME, f"{NAME}, of which an MLP is known to carry nothing")


def _doubled(lab: Lab, draw: int) -> Model:
    """The network with random neurons for MLP 1, in pairs (a, a) going in and (r, -r) going out."""
    _known(lab)
    hf: Any = copy.deepcopy(lab.model.hf)
    model = wrap(hf, name=f"{lab.model.name} with doubled neurons")
    generator = torch.Generator().manual_seed(1000 * lab.seed + draw)
    spread = hf.config.initializer_range
    with torch.no_grad():
        into, out = model.weights.W_in[1], model.weights.W_out[1]
        half = torch.randn(model.d_model, out.shape[0] // 2, generator=generator).to(into) * spread
        back = torch.randn(out.shape[0] // 2, model.d_model, generator=generator).to(out) * spread
        into.copy_(torch.cat([half, half], 1))
        out.copy_(torch.cat([back, -back]))
        model.weights.b_in[1].zero_()
        model.weights.b_out[1].zero_()
    return model


def _two_names(lab: Lab, draw: int) -> Task:
    """Sentences with the same two names, one of them twice; corrupted, the last of the two becomes the other name.

    With two names the concept is one bit, which one direction can hold.
    """
    _known(lab)
    from patchclamp.organisms.circuit_planted.programs import NAMES

    truth: Any = lab.truth
    ids = [truth.program.vocabulary.index(name) for name in NAMES]
    rows = lab.truth.sample(256 if lab.full else 64, 100 * lab.seed + draw)[0].tolist()
    clean, corrupt, answers, wrong = [], [], [], []
    for index, row in enumerate(rows):
        said = [token for token in row if token in ids]
        subject = next(token for token in said if said.count(token) == 2)
        mine, other = ids[:2] if index % 2 else (ids[1], ids[0])
        new = [mine if t == subject else other if t in said else t for t in row]
        last = max(i for i, token in enumerate(new) if token == mine)
        clean.append(new)
        corrupt.append([*new[:last], other, *new[last + 1 :]])
        answers.append(other)
        wrong.append(mine)
    return Task.from_tokens(clean=clean, corrupt=corrupt, answers=answers, wrong=wrong, name="two names")


def _two_letters(lab: Lab, draw: int) -> Task:
    """Inputs whose answer is one letter, each with one whose answer is another."""
    rows, answers = pc.organisms.truth(CARRIER).sample(2000, 100 * lab.seed + draw)
    first, second = answers.unique()[:2].tolist()  # the same two letters in every draw
    one, two = rows[answers == first], rows[answers == second]
    n = min(len(one), len(two), 256 if lab.full else 64)
    return Task.from_tokens(clean=one[:n], corrupt=two[:n], answers=[first] * n, wrong=[second] * n, name="two letters")


def _any_tokens(lab: Lab) -> Tensor:
    """Four prompts of ten tokens: what they say matters to no identity."""
    generator = torch.Generator().manual_seed(lab.seed)
    return torch.randint(len(lab.model.embeddings.weight), (4, 10), generator=generator)


# ── the toys ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Toy(nn.Module):
    """y = 2 h2 + concept_read h1 + c, with h = (c, 0): the concept reaches y past the component."""

    def __init__(self, concept_read: float):
        super().__init__()
        self.component, self.read, self.skip = (
            nn.Linear(1, 2, bias=False),
            nn.Linear(2, 1, bias=False),
            nn.Linear(1, 1, bias=False),
        )
        with torch.no_grad():
            self.component.weight.copy_(torch.tensor([[1.0], [0.0]]))
            self.read.weight.copy_(torch.tensor([[concept_read, 2.0]]))
            self.skip.weight.fill_(1.0)

    def forward(self, c: Tensor) -> Tensor:
        return self.read(self.component(c)) + self.skip(c)


class _Sum(nn.Module):
    """y = h2 + h3 with h = (c, 0, c)."""

    def __init__(self):
        super().__init__()
        self.h = nn.Linear(1, 3, bias=False)
        with torch.no_grad():
            self.h.weight.copy_(torch.tensor([[1.0], [0.0], [1.0]]))

    def forward(self, c: Tensor) -> Tensor:
        return self.h(c)[:, 1:].sum(1, keepdim=True)


def _plain_pairs(model: Model) -> Pairs:
    c = torch.tensor([[1.0], [0.5], [2.0]])
    return Pairs(model, c, -c, measure=lambda y: y[:, 0])


def _toy_effects(concept_read: float) -> list[float]:
    """Of the direction, its parts, the component, and the skip that carries the concept."""
    toy = _Toy(concept_read)
    model = wrap(toy, name="toy")
    pairs = _plain_pairs(model)
    v = Subspace.spanned("module:component", torch.tensor([1.0, 1.0]), model)
    found = illusion(pairs, v, matrix=toy.read.weight.detach().T)
    skip = Subspace.spanned("module:skip", torch.tensor([1.0]), model)
    return [
        found.whole,
        found.row,
        found.null,
        found.component,
        pairs.effect([skip.patch(pairs.activations(skip.site)[1])]),
    ]
