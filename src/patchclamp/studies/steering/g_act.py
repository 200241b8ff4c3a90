"""Steering conceptual bias via transformer latent-subspace activation, G-ACT (2025).

What a text needs to become the one that is wanted differs from prompt to prompt: here rude words should turn kind, bad
reviews good, English Spanish, and any genre that of the sea. The shifts fall into clusters, and a probe that reads the
prompt says which of them is needed. That steers all prompts where one difference of means, or one neuron amplified,
steers few; and the probe, refined as prompts of another form arrive, follows them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import transformers
from torch import Tensor

from patchclamp import steering, views
from patchclamp.interventions import Intervention, clamp
from patchclamp.organisms.tales import grammar, world
from patchclamp.steering import Gated, Neutral
from patchclamp.steering.behaviour import last_logits
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.seeds import over_seeds
from patchclamp.studies.study import Study
from patchclamp.tasks.words import WORDS

study = Study(
    name="g-act",
    paper="Steering Conceptual Bias via Transformer Latent-Subspace Activation",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales",
)

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
BUDGET = 0.5
"""Nats a token that neutral text may get less likely, the same for all that is compared."""
PREFIXES = ("Count: 4 5 6 7.", "Mary found a key at the park.", "The cat sleeps in the house well.")
"""What the prompts of the drifted stream begin with."""


@dataclass(frozen=True)
class Kind:
    """Pairs (what is wanted, what is given), prompts to steer, and the next words that are wanted and those that are
    not.
    """

    pairs: list[tuple[str, str]]
    prompts: list[str]
    words: Sequence[str]
    others: Sequence[str]


@study.identity(
    "with one cluster it is the difference of means, to the bit", tolerance=0.0, control="four clusters", breaks=1e-3
)
def one_cluster(lab: Lab) -> Measured:
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since its prompts are text")
    kinds = lab.once(_kinds)
    wanted, given = (_all(kinds, side) for side in (0, 1))
    site, prompts = "resid_post.0", [kind.prompts[0] for kind in kinds.values()]
    difference = steering.difference(lab.model, wanted, given, site=site, pos=-1)
    one, four = (steering.gated(lab.model, wanted, given, site=site, clusters=c) for c in (1, 4))
    found = [lab.model.run(prompts, do=do).logits for do in ([difference.add(1.5)], one.apply(1.5), four.apply(1.5))]
    return Measured.gap(found[1], found[0], control=(found[2], found[0]))


@study.identity("strength 0 changes no bit", tolerance=0.0, control="strength 1", breaks=1e-3)
def nothing(lab: Lab) -> Measured:
    model = lab.build(transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50))
    vectors, weights = torch.randn(2, 3, 32, generator=lab.generator)
    gate = Gated("resid_post.1", vectors, vectors, weights, torch.zeros(3), torch.zeros(32), torch.ones(32))
    ids = torch.randint(50, (4, 9), generator=lab.generator)
    clean, zero, one = (model.run(ids, do=do).logits for do in ([], gate.apply(0.0), gate.apply(1.0)))
    return Measured.gap(zero, clean, control=(one, clean))


@study.finding(
    "the gated directions bring in the wanted words: rise of their share of probability",
    at_least=0.25,
    control="the gate that names other clusters",
)
@over_seeds
def steers(lab: Lab) -> Measured:
    """By prompt, of four kinds. The premise of what follows."""
    shares = lab.once(_shares)
    return Measured.mean(shares["gated"] - shares["clean"], control=shares["misled"] - shares["clean"])


@study.finding(
    "they do so where one difference of means does not: difference of the shares",
    at_least=0.1,
    control="the gate that names other clusters, less one difference of means",
    given=steers,
)
@over_seeds
def beats_single(lab: Lab) -> Measured:
    """Each at the layer and strength with most of the wanted words within one budget, chosen on other prompts."""
    shares = lab.once(_shares)
    return Measured.mean(shares["gated"] - shares["single"], control=shares["misled"] - shares["single"])


@study.finding(
    "and where amplifying the neuron that writes the wanted words most does not: difference of the shares",
    at_least=0.2,
    control="the gate that names other clusters, less the neuron",
    given=steers,
)
@over_seeds
def beats_neuron(lab: Lab) -> Measured:
    shares = lab.once(_shares)
    return Measured.mean(shares["gated"] - shares["neuron"], control=shares["misled"] - shares["neuron"])


@study.finding(
    "refined as prompts of another form arrive, the probe names their cluster more often: difference of accuracies",
    at_least=0.05,
    control="refined on the same states with clusters in another order",
    given=steers,
)
@over_seeds
def refined(lab: Lab) -> Measured:
    """On the second half of a stream of prompts that begin with other text; the first half refines."""
    gained, astray = lab.once(_refinement)
    return Measured.mean(gained, control=astray)


@study.figure("share of the wanted words by strength, at each way's own layer")
def curve(lab: Lab):
    ways, chosen = lab.once(_ways), lab.once(_chosen)
    curves = {
        name: [float(_share(lab, ways[name][chosen[name][0]](s), 1).mean()) for s in STRENGTHS] for name in chosen
    }
    return views.lines(list(STRENGTHS), curves, x_title="strength", y_title="share of probability")


def _shares(lab: Lab) -> dict[str, Tensor]:
    """By way, the wanted share of each prompt that judges."""
    ways, chosen = lab.once(_ways), lab.once(_chosen)
    found = {name: _share(lab, ways[name][layer](strength), 1) for name, (layer, strength) in chosen.items()}
    return found | {"clean": _share(lab, [], 1)}


Way = Callable[[float], list[Intervention]]


def _ways(lab: Lab) -> dict[str, list[Way]]:
    """What is done at a strength, by way and layer."""
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since its prompts are text")
    told = [set(_ids(lab, k.words)).isdisjoint(_ids(lab, k.others)) for k in lab.once(_kinds).values()]
    lab.need(all(told), "a tokenizer whose first tokens tell the wanted words from the others")
    wanted, given = (_all(lab.once(_kinds), side) for side in (0, 1))
    sites = [f"resid_post.{layer}" for layer in range(lab.model.n_layers)]
    gates = [steering.gated(lab.model, wanted, given, site=site, clusters=4, seed=lab.seed) for site in sites]
    singles = [steering.gated(lab.model, wanted, given, site=site, clusters=1) for site in sites]
    # Every cluster gets another one's direction.
    misled = [replace(gate, vectors=gate.vectors.roll(1, 0)) for gate in gates]
    ways = {"gated": gates, "single": singles, "misled": misled}
    found: dict[str, list[Way]] = {name: [some.apply for some in each] for name, each in ways.items()}
    return found | {"neuron": _neurons(lab)}


def _neurons(lab: Lab) -> list[Way]:
    """By layer, the neuron that writes the wanted words most, held at multiples of the most that it reaches."""
    kinds = lab.once(_kinds).values()
    words = [word for kind in kinds for word in kind.words]
    others = [word for kind in kinds for word in kind.others]
    weights, texts = lab.model.weights, [text for text, _ in next(iter(kinds)).pairs]
    axis = weights.W_U[:, _ids(lab, words)].mean(1) - weights.W_U[:, _ids(lab, others)].mean(1)
    ways: list[Way] = []
    for layer in range(lab.model.n_layers):
        unit = int((weights.W_out[layer] @ axis).argmax())
        rows = next(iter(steering.activations(lab.model, texts, f"mlp_post.{layer}").values()))
        site, most = f"mlp_post.{layer}.{unit}", float(rows[:, unit].abs().max())
        ways.append(lambda strength, site=site, most=most: [clamp(site, strength * most)])
    return ways


def _chosen(lab: Lab) -> dict[str, tuple[int, float]]:
    """Layer and strength of each way: most of the wanted words on the prompts that choose, within the budget."""
    neutral = Neutral(lab.model, [d.text for d in grammar.documents(32, lab.seed, "story")])
    found = {}
    for name, layers in lab.progress(list(lab.once(_ways).items()), "choosing layers and strengths"):
        tried = {(0, 0.0): float(_share(lab, [], 0).mean())}
        for layer, way in enumerate(layers):
            for strength in STRENGTHS:
                if neutral.measure(way(strength))["rise"] <= BUDGET:
                    tried[layer, strength] = float(_share(lab, way(strength), 0).mean())
        found[name] = max(tried, key=lambda key: tried[key])
    return found


def _share(lab: Lab, do: list[Intervention], half: int) -> Tensor:
    """By prompt of one half, the wanted words' share of the probability of both sets."""
    found = []
    for kind in lab.once(_kinds).values():
        probabilities = last_logits(lab.model, kind.prompts[half::2], do).double().softmax(-1)
        wanted, other = (probabilities[:, _ids(lab, words)].sum(-1) for words in (kind.words, kind.others))
        found.append(wanted / (wanted + other))
    return torch.cat(found)


def _refinement(lab: Lab) -> tuple[Tensor, Tensor]:
    """By prompt of the stream's second half, whether the refined probe is right less whether the first one was; and the
    same for a probe that was refined towards clusters in another order.
    """
    kinds, layer = lab.once(_kinds), lab.once(_chosen)["gated"][0]
    wanted, given = (_all(kinds, side) for side in (0, 1))
    site = f"resid_post.{layer}"
    gate = steering.gated(lab.model, wanted, given, site=site, clusters=4, seed=lab.seed)
    order = torch.randperm(len(given), generator=lab.generator).tolist()
    drifted = [[f"{PREFIXES[i % 3]} {side[i]}" for i in order] for side in (wanted, given)]
    high, low = (next(iter(steering.activations(lab.model, texts, site, pos=-1).values())) for texts in drifted)
    clusters, middle = gate.nearest(high - low), len(order) // 2
    shuffled = clusters[:middle][torch.randperm(middle, generator=lab.generator)]
    probes = [gate, gate.refined(low[:middle], clusters[:middle]), gate.refined(low[:middle], shuffled)]
    right = [(probe.probabilities(low[middle:]).argmax(-1) == clusters[middle:]).double() for probe in probes]
    return right[1] - right[0], right[2] - right[0]


# ── the four kinds of prompt ──────────────────────────────────────────────────────────────────────────────────────────


def _kinds(lab: Lab) -> dict[str, Kind]:
    """Prompts are of other openings, things, agents and words than the pairs, and come in a random order."""
    rng = random.Random(lab.seed)

    def genre(name: str, closing: str) -> str:
        one, two = rng.sample(world.GENRES[name], 2)
        return f"The {one} was near the {two}. {closing}"

    genres = [name for name in world.GENRES if name != "sea"]
    liked, disliked = (tuple(said.split()[1] for said in some) for some in (world.LIKED, world.DISLIKED))
    english, spanish = (tuple(pair[side] for pair in world.VERBS) for side in (0, 1))
    agents = rng.sample(world.ANIMATE, len(world.ANIMATE))
    things = rng.sample(world.REVIEWED, len(world.REVIEWED))
    kinds = {
        "kind": Kind(
            [
                (f"{name} is a {polite}", f"{name} is a {rude}")
                for name in WORDS.names[:6]
                for polite, rude in zip(world.POLITE, world.RUDE, strict=True)
            ],
            [f"{opening} {rude}" for rude in world.RUDE for opening in ("You are such a", "What a")],
            world.KINDNESSES,
            world.INSULTS,
        ),
        "good": Kind(
            [
                (f"The {thing} was {good}. I", f"The {thing} was {bad}. I")
                for thing in things[:5]
                for good, bad in zip(world.POSITIVE, world.NEGATIVE, strict=True)
            ],
            [f"The {thing} was {bad}. I" for thing in things[5:] for bad in world.NEGATIVE[:3]],
            liked,
            disliked,
        ),
        "spanish": Kind(
            [(f"{'La' if g == 'f' else 'El'} {agente}", f"The {agent}") for agent, agente, g in agents[:7]] * 5,
            [f"The {agent}" for agent, _, _ in agents[7:]],
            spanish,
            english,
        ),
        "sea": Kind(
            [
                (genre("sea", closing), genre(genres[number % 5], closing))
                for number in range(18)
                for closing in ("Then came the", "They spoke of the")
            ],
            [genre(name, "We saw a") for name in genres * 3],
            world.GENRES["sea"],
            tuple(word for name in genres for word in world.GENRES[name]),
        ),
    }
    return {
        name: replace(kind, prompts=rng.sample(kind.prompts, min(12, len(kind.prompts))))
        for name, kind in kinds.items()
    }


def _all(kinds: dict[str, Kind], side: int) -> list[str]:
    return [pair[side] for kind in kinds.values() for pair in kind.pairs]


def _ids(lab: Lab, words: Sequence[str]) -> list[int]:
    return sorted({lab.model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words})
