"""Fine-grained activation steering: steering less, achieving more (AUSteer).

Single units of a block, not the block as a whole: those that a contrast moves the same way in nearly every pair are
scaled by how often. Where it is known which units matter, the momentum finds them, and steering them alone is more
selective than adding the block's difference of means at the same length; in a model few of them do most of what the
whole direction does.
"""

import torch
from torch import Tensor

from patchclamp import steering, views
from patchclamp.interventions import Intervention
from patchclamp.organisms.tales import world
from patchclamp.steering import Units, momentum
from patchclamp.steering.behaviour import last_logits
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study
from patchclamp.tasks.words import WORDS

study = Study(
    name="austeer",
    paper="Fine-Grained Activation Steering: Steering Less, Achieving More",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales",
)

UNITS, FEW = 64, 32
SITES = "mlp_post.*"
STRENGTHS = (1.0, 2.0, 4.0, 8.0)


@study.identity(
    "momentum is the same whatever the positive scale of a unit",
    tolerance=0.0,
    control="a scale of either sign",
    breaks=0.5,
)
def scale_free(lab: Lab) -> Measured:
    high, low = torch.randn(2, 50, UNITS, generator=lab.generator)
    scale = torch.tensor([0.5, 4.0]).repeat(UNITS // 2)
    own, scaled, other = (momentum(s * high, s * low) for s in (1.0, scale, scale * torch.tensor([1, -1]).repeat(32)))
    return Measured.gap(scaled, own, control=(other, own))


@study.identity("strength 0 changes no bit", tolerance=0.0, control="strength 1", breaks=1e-3)
def nothing(lab: Lab) -> Measured:
    ids = torch.randint(len(lab.model.embeddings.weight), (2, 8), generator=lab.generator)
    width = lab.model.run(ids, record="mlp_post.0", stop=True)["mlp_post.0"].shape[-1]
    some = Units({"mlp_post.0": torch.rand(width, generator=lab.generator)})
    clean, zero, one = (lab.model.run(ids, do=do).logits for do in ([], some.apply(0.0), some.apply(1.0)))
    return Measured.gap(zero, clean, control=(one, clean))


@study.finding(
    "of planted units, five that help and five that harm, the ten with most momentum are those: precision",
    at_least=0.9,
    control="ten units drawn at random",
)
def planted(lab: Lab) -> Measured:
    draws = range(20 if lab.full else 10)
    found = [_planted(lab, seed) for seed in draws]
    hits, drawn = (
        [_precision(u) for u in some] for some in ([u.most(10) for u in found], [u.drawn(10) for u in found])
    )
    return Measured.mean(hits, control=drawn)


@study.finding(
    "the direction of every block, added, makes what began rudely go on politely: rise of the polite nouns' share",
    at_least=0.1,
    control="random units",
)
def steers(lab: Lab) -> Measured:
    """Without this premise a share of its effect means nothing."""
    return Measured.mean(lab.once(_effects)["direction"], control=lab.once(_effects)["random"])


@study.finding(
    "32 units do most of what the whole direction does: share of its effect",
    at_least=0.9,
    control="32 units drawn at random, at the same strengths",
    given=steers,
)
def few(lab: Lab) -> Measured:
    """Rise of the polite nouns' share of probability behind rude adjectives; each at its best strength, on other
    prompts.
    """
    effects = lab.once(_effects)
    full = float(effects["direction"].mean())
    return Measured.mean(effects["units"] / full, control=effects["random"] / full)


@study.finding(
    "as many random units do next to nothing: share of its effect", at_most=0.2, control="the 32 units", given=few
)
def random(lab: Lab) -> Measured:
    effects = lab.once(_effects)
    full = float(effects["direction"].mean())
    return Measured.mean(effects["random"] / full, control=effects["units"] / full)


@study.figure("share of polite nouns by strength")
def curve(lab: Lab):
    ways = lab.once(_ways)
    curves = {name: [float(_polite(lab, 1, do(s)).mean()) for s in STRENGTHS] for name, do in ways.items()}
    return views.lines(list(STRENGTHS), curves, x_title="strength", y_title="share of probability")


def _planted(lab: Lab, seed: int) -> Units:
    """Pairs of blocks of 64 units: five that are larger on the positive side, five smaller, the rest noise."""
    generator = torch.Generator().manual_seed(1000 * lab.seed + seed)
    high, low = torch.randn(2, 100, UNITS, generator=generator)
    if not lab.untrained:
        high[:, :5] += 1.5
        high[:, 5:10] -= 1.5
    return Units({"mlp_post.0": momentum(high, low)})


def _precision(chosen: Units) -> float:
    """Of ten units, the share that was planted: the first ten."""
    return float((chosen.momentum["mlp_post.0"][:10] != 0).float().mean())


def _effects(lab: Lab) -> dict[str, Tensor]:
    """By way the rise on the prompts that judge, at the strength with most on those that choose."""
    found = {}
    for name, do in lab.progress(list(lab.once(_ways).items()), "strengths"):
        best = max(STRENGTHS, key=lambda s: float(_polite(lab, 0, do(s)).mean()))
        found[name] = _polite(lab, 1, do(best)) - _polite(lab, 1, [])
    return found


def _ways(lab: Lab):
    """What is done at a strength: the units, as many random ones, the difference of means in every block's output."""
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since its prompts are text")
    texts = [
        [f"{name} is a {adjective}" for name in WORDS.names[:12] for adjective in words]
        for words in (world.POLITE, world.RUDE)
    ]
    every = steering.units(lab.model, *texts, sites=SITES)
    directions = steering.differences(lab.model, *texts, sites="mlp_out.*", pos=-1).values()
    return {
        "direction": lambda s: [direction.add(s / 2) for direction in directions],
        "units": every.most(FEW).apply,
        "random": every.drawn(FEW, seed=lab.seed).apply,
    }


def _polite(lab: Lab, half: int, do: list[Intervention]) -> Tensor:
    """By prompt, the polite nouns' share of the probability of both kinds, behind a rude adjective."""
    openings = ("You are such a", "What a") if half else ("Mary is a", "John is a")
    prompts = [f"{opening} {adjective}" for adjective in world.RUDE for opening in openings]
    probabilities = last_logits(lab.model, prompts, do).double().softmax(-1)
    nouns = (world.KINDNESSES, world.INSULTS)
    ids = [[lab.model.tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in words] for words in nouns]
    polite, rude = (probabilities[:, some].sum(-1) for some in ids)
    return polite / (polite + rude)
