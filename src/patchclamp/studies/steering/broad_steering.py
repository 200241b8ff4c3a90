"""Extending activation steering to broad skills and multiple behaviours (van der Weij et al. 2024).

A direction of a broad skill (code less other text) takes it away about as selectively as that of a narrow one (one
programming language less other text). Of four attributes, each with two sets of words that it decides between, the
directions are added at once, each at a layer of its own, or merged into one vector at one layer, and the shift of every
attribute is measured on its own prompts. Layers and strengths are chosen on other prompts than those that judge.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
import transformers
from torch import Tensor

from patchclamp import steering, views
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.organisms.tales import grammar, prose, world
from patchclamp.steering import Direction
from patchclamp.steering.behaviour import last_logits
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="broad-steering",
    paper="Extending Activation Steering to Broad Skills and Multiple Behaviours (arXiv:2403.05767)",
    seed="000_14db195f17440023.txt",
    organism="tales",
)

STRENGTHS = (1.0, 2.0, 4.0, 6.0, 8.0)
"""Multiples of a difference of means."""
NEARLY = 0.8
"""The weakest strength is taken that does as well as this share of the best."""


@dataclass(frozen=True)
class Attribute:
    """Texts with and without it, prompts that begin without it, and the next words for and against it."""

    have: list[str]
    lack: list[str]
    prompts: list[str]
    words: tuple[str, ...]
    others: tuple[str, ...]


@study.finding(
    "steering away from all code takes it away as selectively as steering away from one language: ratio of the two",
    at_least=0.8,
    control="random directions of the same norm, to the direction of one language",
)
def broad(lab: Lab) -> Measured:
    """Selective loss: share of next-token accuracy lost on that language less that lost on other text, mean over the
    strengths.
    """
    found = lab.once(_selective_losses)
    narrow = found["narrow"].mean()
    control = [found[name].mean() / narrow for name in found if name.startswith("random")]
    return Measured.number(found["broad"].mean() / narrow, control=control)


@study.finding(
    "added at once, each at its own layer, four directions move every attribute: shift of the least moved",
    at_least=0.25,
    control="random directions of the same norms at the same layers",
)
def simultaneous(lab: Lab) -> Measured:
    """Shift of the probability of the attribute's words among both sets, by prompt."""
    shifts = lab.once(_shifts)
    least = min(shifts["simultaneous"], key=lambda name: float(shifts["simultaneous"][name].mean()))
    return Measured.mean(shifts["simultaneous"][least], control=shifts["random"][least])


@study.finding(
    "the three others hardly move an attribute: largest mean shift without its own direction",
    at_most=0.1,
    control="with its own direction",
    given=simultaneous,
)
def crosstalk(lab: Lab) -> Measured:
    shifts = lab.once(_shifts)
    most = max(shifts["others"], key=lambda name: abs(float(shifts["others"][name].mean())))
    return Measured.mean(shifts["others"][most].abs(), control=shifts["simultaneous"][most].abs())


@study.finding(
    "merged into one vector of the same total norm they leave one behind: how much further it moves otherwise",
    at_least=0.1,
    control="the same attribute under random directions, at several layers less merged",
    given=simultaneous,
)
def merged(lab: Lab) -> Measured:
    """Of the attribute that the merged vector moves least."""
    shifts = lab.once(_shifts)
    least = min(shifts["merged"], key=lambda name: float(shifts["merged"][name].mean()))
    pairs = (("simultaneous", "merged"), ("random", "random merged"))
    ours, rand = (shifts[several][least] - shifts[one][least] for several, one in pairs)
    return Measured.mean(ours, control=rand)


@study.identity(
    "directions added at several layers with strength 0 change no bit", tolerance=0.0, control="strength 1", breaks=1e-3
)
def nothing(lab: Lab) -> Measured:
    model, directions, ids = _small(lab)
    clean, zero, one = (
        model.run(ids, do=[d.add(s) for d in directions] if s is not None else []).logits for s in (None, 0.0, 1.0)
    )
    return Measured.gap(zero, clean, control=(one, clean))


@study.identity(
    "two directions added at one place are their sum, added", tolerance=1e-6, control="one of the two", breaks=1e-3
)
def summed(lab: Lab) -> Measured:
    model, (first, second), ids = _small(lab)
    second = second.at(first.site)
    both = model.run(ids, do=[first.add(), second.add()]).logits
    return Measured.gap(
        both,
        model.run(ids, do=[(first + second).add()]).logits,
        control=(both, model.run(ids, do=[first.add()]).logits),
    )


@study.figure("mean shift of each attribute, by how the four directions are added")
def side_by_side(lab: Lab):
    shifts = lab.once(_shifts)
    ways = ("alone", "simultaneous", "merged", "others", "random")
    found = {way: [Measured.mean(shifts[way][name]) for name in shifts[way]] for way in ways}
    return views.lines(
        list(range(len(shifts["alone"]))),
        {way: [m.value for m in row] for way, row in found.items()},
        intervals={way: [list(m.interval) for m in row] for way, row in found.items()},
        title=", ".join(f"{number}: {name}" for number, name in enumerate(shifts["alone"])),
        x_title="attribute",
        y_title="shift of probability",
    )


def _small(lab: Lab) -> tuple[Model, list[Direction], Tensor]:
    """A random network in double precision, two directions at different layers, tokens."""
    model = lab.build(transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50))
    model.hf.double()
    vectors = torch.randn(2, 32, generator=lab.generator)
    directions = [Direction(f"resid_post.{layer}", vector) for layer, vector in enumerate(vectors)]
    return model, directions, torch.randint(50, (4, 9), generator=lab.generator)


# ── a broad and a narrow skill ────────────────────────────────────────────────────────────────────────────────────────


def _selective_losses(lab: Lab) -> dict[str, Tensor]:
    """[strength] by direction: share of accuracy lost on infix code less that lost on other text."""
    kinds = ("story", "fact", "sentiment", "english", "opposites")
    fit, held = ([d for k in ("code", *kinds) for d in grammar.documents(64, seed, k)] for seed in (lab.seed, 99))
    infix, prefix = ([d.text for d in fit if _has(d, f"code:{which}")] for which in ("infix", "prefix"))
    text = [d.text for d in fit if d.kind != "code"]
    code, rest = [d.text for d in held if _has(d, "code:infix")], [d.text for d in held if d.kind != "code"][::3]
    site = f"resid_post.{lab.model.n_layers // 2}"
    narrow = steering.difference(lab.model, infix, text, site=site)
    one = min(len(infix), len(prefix))
    directions = {"narrow": narrow}
    directions["broad"] = steering.difference(lab.model, infix[:one] + prefix[:one], text, site=site)
    directions = {name: d.rescaled(narrow.norm) for name, d in directions.items()}
    directions |= {f"random {n}": steering.random(narrow, seed=100 * lab.seed + n) for n in range(3)}
    clean = [_accuracy(lab.model, texts, []) for texts in (code, rest)]
    found = {}
    for name, direction in lab.progress(list(directions.items()), "steering away from code"):
        row = []
        for strength in STRENGTHS:
            left = [_accuracy(lab.model, texts, [direction.add(-strength)]) for texts in (code, rest)]
            lost = [1 - now / before if before else float("nan") for now, before in zip(left, clean, strict=True)]
            row.append(lost[0] - lost[1])
        found[name] = torch.tensor(row, dtype=torch.float64)
    return found


def _has(document: grammar.Document, role: str) -> bool:
    return any(span.role == role for span in document.spans)


def _accuracy(model: Model, texts: list[str], do: list[Intervention]) -> float:
    """Share of next tokens that are the likeliest."""
    run = model.run(texts, do=do)
    assert run.logits is not None and run.tokens is not None
    real = run.tokens.mask[:, 1:].bool()
    hits = run.logits[:, :-1].argmax(-1).cpu() == run.tokens.ids[:, 1:].cpu()
    return float(hits[real.cpu()].double().mean())


# ── four attributes at once ───────────────────────────────────────────────────────────────────────────────────────────


def _attributes(lab: Lab) -> dict[str, Attribute]:
    n = 96
    rng = random.Random(lab.seed)

    def texts(kind: str, role: str) -> list[str]:
        return [d.text for d in grammar.documents(2 * n, lab.seed, kind) if _has(d, role)][: n // 2]

    genres = {genre: [prose.of_genre(rng, genre).text for _ in range(n // 2)] for genre in world.GENRES}
    elsewhere = [text for genre in world.GENRES if genre != "sea" for text in genres[genre][: n // 8]]
    insults = [f"{opening} {adjective}" for adjective in world.RUDE for opening in ("You are such a", "What a")]
    pans = [f"The {thing} was {opinion}. I" for thing, opinion in zip(world.REVIEWED, world.NEGATIVE * 2, strict=False)]
    liked, disliked = (tuple(said.split()[1] for said in some) for some in (world.LIKED, world.DISLIKED))
    sea, rest = world.GENRES["sea"], tuple(w for g, words in world.GENRES.items() if g != "sea" for w in words)
    english, spanish = (tuple(pair[side] for pair in world.VERBS) for side in (0, 1))
    return {
        "polite": Attribute(
            texts("tone", "neutral"),
            texts("tone", "toxic"),
            insults,
            world.KINDNESSES,
            world.INSULTS,
        ),
        "positive": Attribute(
            texts("sentiment", "positive"),
            texts("sentiment", "negative"),
            pans,
            liked,
            disliked,
        ),
        "spanish": Attribute(
            [d.text for d in grammar.documents(n // 2, lab.seed, "spanish")],
            [d.text for d in grammar.documents(n // 2, lab.seed, "english")],
            [f"The {agent}" for agent, _, _ in world.ANIMATE],
            spanish,
            english,
        ),
        "sea": Attribute(
            genres["sea"],
            elsewhere,
            [f"{prose.of_genre(rng, g).text.split('.')[0]}. We saw a" for g in genres],
            sea,
            rest,
        ),
    }


def _shares(lab: Lab, do: Sequence[Intervention], half: int) -> dict[str, Tensor]:
    """By attribute, of every second prompt: probability of its words among those of both sets."""
    attributes = lab.once(_attributes)
    prompts = {name: attribute.prompts[half::2] for name, attribute in attributes.items()}
    logits = last_logits(lab.model, [prompt for some in prompts.values() for prompt in some], do).double()
    found, start = {}, 0
    for name, attribute in attributes.items():
        rows = logits[start : start + len(prompts[name])].softmax(-1)
        start += len(prompts[name])
        ours, other = (rows[:, _ids(lab.model, words)].sum(-1) for words in (attribute.words, attribute.others))
        found[name] = ours / (ours + other)
    return found


def _ids(model: Model, words: Sequence[str]) -> list[int]:
    return sorted({model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words})


def _moved(lab: Lab, do: Sequence[Intervention], half: int) -> dict[str, Tensor]:
    clean, now = lab.once(_clean, half), _shares(lab, do, half)
    return {name: now[name] - clean[name] for name in now}


def _clean(lab: Lab, half: int) -> dict[str, Tensor]:
    return _shares(lab, [], half)


def _shifts(lab: Lab) -> dict[str, dict[str, Tensor]]:
    """Shift of each attribute by prompt, for each way to add the directions, on the half that judges."""
    vectors = lab.once(_vectors)
    chosen = lab.once(_assigned)
    every = list(chosen.values())
    total = sum(direction.norm for direction in every)
    randoms = [steering.random(direction, seed=50 * lab.seed + n) for n, direction in enumerate(every)]
    one, other = _merged(lab, vectors, chosen, total), _sum(randoms, every[0].site, total)
    found = {
        way: _moved(lab, [d.add() for d in some], 1) for way, some in (("simultaneous", every), ("random", randoms))
    }
    found |= {way: _moved(lab, [d.add()], 1) for way, d in (("merged", one), ("random merged", other))}
    found["alone"] = {name: _moved(lab, [own.add()], 1)[name] for name, own in chosen.items()}
    found["others"] = {name: _moved(lab, [d.add() for n, d in chosen.items() if n != name], 1)[name] for name in chosen}
    return found


def _vectors(lab: Lab) -> dict[str, list[Direction]]:
    """The difference of means of each attribute, by layer."""
    attributes = lab.once(_attributes)
    return {
        name: list(steering.differences(lab.model, a.have, a.lack, sites="resid_post.*").values())
        for name, a in attributes.items()
    }


def _assigned(lab: Lab) -> dict[str, Direction]:
    """To each attribute a layer of its own, and a strength: what moves it most, less what it moves others by."""
    vectors = lab.once(_vectors)
    best: dict[tuple[str, int], tuple[float, Direction]] = {}
    for name, by_layer in lab.progress(list(vectors.items()), "choosing layers and strengths"):
        for layer, direction in enumerate(by_layer):
            tried = []
            for strength in STRENGTHS:
                shifts = {n: float(s.mean()) for n, s in _moved(lab, [direction.add(strength)], 0).items()}
                score = shifts.pop(name) - sum(abs(shift) for shift in shifts.values())
                tried.append((score, strength * direction))
            enough = NEARLY * max(score for score, _ in tried)
            best[name, layer] = next((item for item in tried if item[0] >= enough), tried[0])
    names = list(vectors)
    orders = permutations(range(lab.model.n_layers), len(names))
    order = max(orders, key=lambda layers: sum(best[pair][0] for pair in zip(names, layers, strict=True)))
    return _balanced(lab, {name: best[name, layer][1] for name, layer in zip(names, order, strict=True)})


def _balanced(lab: Lab, directions: dict[str, Direction]) -> dict[str, Direction]:
    """What is enough alone may not be together: each in turn is made as strong as moves the least moved most."""
    for name in list(directions) * 2:
        tried = [directions | {name: factor * directions[name]} for factor in (1.0, 0.5, 0.75, 1.5, 2.0)]
        directions = max(tried, key=lambda some: _least(lab, [direction.add() for direction in some.values()]))
    return directions


def _least(lab: Lab, do: Sequence[Intervention]) -> float:
    """Mean shift of the least moved attribute, on the half that chooses."""
    return min(float(shift.mean()) for shift in _moved(lab, do, 0).values())


def _merged(
    lab: Lab, vectors: Mapping[str, Sequence[Direction]], chosen: Mapping[str, Direction], total: float
) -> Direction:
    """The sum of all, each as long as it is alone, at the one layer where it moves the least moved attribute most."""
    tried = []
    for layer in range(lab.model.n_layers):
        own = [vectors[name][layer].rescaled(direction.norm) for name, direction in chosen.items()]
        one = _sum(own, own[0].site, total)
        tried.append((_least(lab, [one.add()]), one))
    return max(tried, key=lambda item: item[0])[1]


def _sum(directions: Sequence[Direction], site: str, norm: float) -> Direction:
    first, *rest = (direction.at(site) for direction in directions)
    return sum(rest, first).rescaled(norm)
