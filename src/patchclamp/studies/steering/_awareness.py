"""Directions and latents of the base that say whether somebody is known, and what they turn in the chat's replies.

A direction goes from unknown to known; a strength below 0 subtracts it and is asked about known people, one above 0
adds it and is asked about unknown ones. What is chosen is chosen on people to fit with.
"""

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import dictionaries, steering
from patchclamp.dictionaries import Dictionary, TopK, Trainer
from patchclamp.model import Model
from patchclamp.organisms.tales import world
from patchclamp.probes import Separation, measures, separation
from patchclamp.probes.separation import Side
from patchclamp.steering import Direction
from patchclamp.studies.lab import Lab
from patchclamp.studies.steering import _entities as entities
from patchclamp.studies.steering._entities import Roster

STRENGTHS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
RANDOM, HALVINGS, HEADS = 20, 20, 4
WIDTH, K, DICTIONARIES = 256, 4, 4
RARE = 5 * K / WIDTH
"""The paper leaves out latents active in 2 % of text, about five times the mean of its dictionaries' latents."""
GENERIC = ("story", "sentiment", "genre", "code", "spanish", "letters", "count")
"""Kinds of text without people."""
SIDES: tuple[Side, Side] = ("first", "second")
"""Active for known people, and for unknown ones."""

Found = tuple[Direction, float, float]
"""A direction, and how strongly it is subtracted and added."""

# ── directions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def roster(lab: Lab) -> Roster:
    known = {subject for subject, relation, _ in lab.truth.facts if relation in world.PERSON_RELATIONS}
    lab.need({person.name for person in world.people()[0]} <= known, "a model that was taught the people of `tales`")
    return entities.roster(lab.seed)


def base_model(lab: Lab) -> Model:
    return lab.load("tales")


def states(lab: Lab) -> dict[str, Float[Tensor, "person relation d"]]:
    """Of the base, at every site, at the names of everybody."""
    base = lab.once(base_model)
    sites = ["embed", *(f"resid_post.{layer}" for layer in range(base.n_layers))]
    return entities.states(base, sites, list(lab.once(roster).people))


def areas(lab: Lab, site: str, shuffle: bool) -> Float[Tensor, " halving"]:
    """AUC of the difference of means of one half on the other, over halvings."""
    x, known, found = lab.once(states)[site], lab.once(roster).known, []
    for _ in range(HALVINGS):
        if shuffle:
            known = known[torch.randperm(len(known), generator=lab.generator)]
        fit = torch.rand(len(known), generator=lab.generator) < 0.5
        vector = x[fit & known].mean((0, 1)) - x[fit & ~known].mean((0, 1))
        found.append(measures.auc((x[~fit] @ vector).flatten(), known[~fit].repeat_interleave(x.shape[1])))
    return torch.stack(found)


def scan(lab: Lab) -> list[Found]:
    """At every site the difference of means, and the strengths that turn most replies, of people to fit with."""
    people, found = lab.once(roster), []
    for site, x in lab.once(states).items():
        vector = x[people.fit & people.known].mean((0, 1)) - x[people.fit & ~people.known].mean((0, 1))
        direction = Direction(site, vector, "difference", {"model": "tales"})
        found.append((direction, *(strongest(lab, direction, sign) for sign in (-1, 1))))
    return found


def strongest(lab: Lab, direction: Direction, sign: int) -> float:
    """The strength that turns most replies; of those equal to a twentieth, the least."""
    return max(
        STRENGTHS, key=lambda strength: round(20 * float(turned(lab, direction, sign * strength, fit=True).mean()))
    )


def mediator(lab: Lab) -> Found:
    """The site where most replies turn."""
    return max(lab.once(scan), key=lambda found: float(both_turned(lab, found, fit=True).mean()))


def bystander(lab: Lab) -> Found:
    """Where fewest do."""
    return min(lab.once(scan), key=lambda found: float(both_turned(lab, found, fit=True).mean()))


def randoms(lab: Lab) -> list[Direction]:
    """As long as the direction that acts, where it does."""
    direction = lab.once(mediator)[0]
    return [steering.random(direction, seed=1000 * lab.seed + index) for index in range(RANDOM)]


def push(direction: Direction, strength: float) -> entities.Push:
    return lambda where: direction.add(strength, pos=where)


def turned(lab: Lab, direction: Direction, strength: float, fit: bool = False) -> Tensor:
    """1 where the chat model does not know of somebody known (strength < 0), or answers about somebody unknown."""
    people = lab.once(roster).of(known=strength < 0, fit=fit)
    phrase = entities.IGNORANCE if strength < 0 else entities.ANSWER
    return entities.says(lab.model, people, fit, phrase, push(direction, strength))


def both_turned(lab: Lab, found: Found, fit: bool = False) -> Tensor:
    direction, down, up = found
    return torch.cat([turned(lab, direction, strength, fit) for strength in (-down, up)])


def mean_turned(lab: Lab, directions: list[Direction], strength: float) -> list[float]:
    return [float(turned(lab, one, strength).mean()) for one in lab.progress(directions, "controls")]


def randoms_turned(lab: Lab, strength: float) -> list[float]:
    return mean_turned(lab, lab.once(randoms), strength)


def attended(lab: Lab, direction: Direction, strength: float) -> Tensor:
    """How the attention of the heads that fetch facts changes, as a share of what it was, by prompt."""
    known = strength < 0
    people = lab.once(roster).of(known, fit=False)
    steered = entities.attention(lab.model, people, False, push(direction, strength)).flatten(1)
    return steered[:, lab.once(heads)].sum(1) / lab.once(unsteered, known) - 1


def unsteered(lab: Lab, known: bool) -> Tensor:
    people = lab.once(roster).of(known, fit=False)
    return entities.attention(lab.model, people, False).flatten(1)[:, lab.once(heads)].sum(1)


def heads(lab: Lab) -> Tensor:
    """Those of the chat model that attend most to known names, beyond what they do to unknown ones."""
    people = lab.once(roster)
    known, unknown = (entities.attention(lab.model, people.of(k, fit=True), True).mean(0) for k in (True, False))
    return (known - unknown).flatten().topk(HEADS).indices


# ── latents ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def names(lab: Lab) -> Float[Tensor, "person relation d"]:
    """States at names, where the direction acts."""
    return lab.once(states)[lab.once(mediator)[0].site]


def _text(lab: Lab, site: str, kinds: tuple[str, ...] | None) -> Float[Tensor, "row d"]:
    """States of the base on text, of all kinds or of some; each document's first token left out."""
    base = lab.once(base_model)
    lab.need(lab.truth.writer is not None, "a model whose training text is known")
    documents = (
        lab.truth.documents(4000, seed=lab.seed)
        if kinds is None
        else [document for kind in kinds for document in lab.truth.documents(40, seed=lab.seed + 1, kind=kind)]
    )
    rows = []
    for first in range(0, len(documents), 250):
        tokens = base.tokens([document.text for document in documents[first : first + 250]])
        run = base.run(tokens.ids, attention_mask=tokens.mask, record=site, stop=True)
        rows.append(run[site][:, 1:][tokens.mask[:, 1:].bool()])
    return torch.cat(rows)


def trained(lab: Lab) -> list[Dictionary]:
    """Where the direction acts."""
    return dictionaries_at(lab, lab.once(mediator)[0].site, DICTIONARIES)


def dictionaries_at(lab: Lab, site: str, number: int) -> list[Dictionary]:
    """Of the base's states on its own text, by seed; seeds below 100 are those that WIDTH and K were chosen by."""
    x = lab.once(_text, site, None)
    seeds = [100 + number * lab.seed + index for index in range(number)]
    if lab.untrained:
        return [Trainer(TopK(k=K), d_in=x.shape[1], width=WIDTH, seed=seed).dictionary() for seed in seeds]
    return [
        dictionaries.train(
            TopK(k=K), x, width=WIDTH, tokens=300_000, batch=512, learning_rate=3e-3, seed=seed, progress=False
        )
        for seed in lab.progress(seeds, "dictionaries")
    ]


def _labels(lab: Lab, shuffle: int | None) -> Tensor:
    """Who is known; or who is said to be, where labels are shuffled among people of one type and half."""
    people = lab.once(roster)
    known = people.known.clone()
    if shuffle is None:
        return known
    for number in range(4):
        rows = ((people.men == bool(number % 2)) & (people.fit == bool(number // 2))).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(10 * (1000 * lab.seed + shuffle) + number)
        known[rows] = known[rows[torch.randperm(len(rows), generator=generator)]]
    return known


def separations(lab: Lab, shuffle: int | None, who: str) -> list[Separation]:
    """By dictionary: of people to fit with, to judge by, or all."""
    people, known, x = lab.once(roster), lab.once(_labels, shuffle), names(lab)
    among = {"fit": people.fit, "test": ~people.fit, "all": torch.ones_like(people.fit)}[who]
    sides = {
        name: (x[among & men & known].flatten(0, 1), x[among & men & ~known].flatten(0, 1))
        for name, men in (("men", people.men), ("women", ~people.men))
    }
    background = lab.once(_text, lab.once(mediator)[0].site, GENERIC)
    return [separation(dictionary, sides, background=background, rare=RARE) for dictionary in lab.once(trained)]


def _best(found: list[Separation], side: Side) -> tuple[int, int]:
    """Dictionary and latent of the largest score on that side."""
    latents = [one.best(side) for one in found]
    number = max(range(len(found)), key=lambda number: latents[number].score)
    return number, latents[number].index


def held_out(lab: Lab, shuffle: int | None = None) -> list[float]:
    """Scores of a latent for known and of one for unknown, on people whom they were not chosen by."""
    fit, test = (lab.once(separations, shuffle, who) for who in ("fit", "test"))
    scores = []
    for side in SIDES:
        number, index = _best(fit, side)
        scores.append(float(test[number].least(side)[index]))
    return scores


def across(lab: Lab, shuffle: int | None = None) -> list[float]:
    """Of latents that were chosen on all men, on all women; and back."""
    every, scores = lab.once(separations, shuffle, "all"), []
    for side, (here, there) in product(SIDES, (("men", "women"), ("women", "men"))):
        number, index = _best([one.of(here) for one in every], side)
        scores.append(float(every[number].of(there).least(side)[index]))
    return scores


def by_latent(lab: Lab, side: Side) -> tuple[Direction, float, list[Direction]]:
    """What a latent writes, from unknown to known and as long as a name; its strength, with a sign; other latents.

    Of every dictionary's latent that separates best on that side, the one that turns most replies.
    """
    found, sign = lab.once(separations, None, "fit"), 1 if side == "first" else -1
    site, norm = lab.once(mediator)[0].site, float(names(lab).norm(dim=-1).mean())
    tried = []
    for one, dictionary in zip(found, lab.once(trained), strict=True):
        index = one.best(side).index
        rows = [index, *_drawn(one.eligible, index, lab.generator)]
        own, *others = (Direction(site, sign * dictionary.W_dec[row], "latent").rescaled(norm) for row in rows)
        strength = sign * strongest(lab, own, sign)
        tried.append((own, strength, others))
    return max(tried, key=lambda one: float(turned(lab, one[0], one[1], fit=True).mean()))


def _drawn(eligible: Tensor, index: int, generator: torch.Generator) -> list[int]:
    """Other latents than this one."""
    others = eligible.nonzero()[:, 0]
    others = others[others != index]
    return others[torch.randperm(len(others), generator=generator)][:RANDOM].tolist()
