"""Fine-grained activation steering: steering less, achieving more (AUSteer).

Single units of a block, not the block as a whole: those that a contrast moves the same way in nearly every pair are
moved by how often. Where it is known which units matter the momentum finds them; in a model few of them do most of
what the whole direction does.

The paper scales a unit by its momentum, a + s m a, which drives a unit below zero the wrong way; here it moves by its
size, a + s m |a|. In `tales`, `tales-1` and `tales-2`, whose attention outputs are as often negative, 32 of 384 units
so moved have .95, .99 and .99 of the direction's effect, and as published .75, .73 and .50. That attention's outputs
are steered (the paper also has those of MLPs) was chosen on these three, by reviews; with politeness for reviews,
which nothing was chosen on, 32 units have .92, .63 and .96 of the effect, as published .60, .29 and .12, random ones
.15, .48 and .22. In an MLP's neurons a hundred units or more agree in all pairs, and which 32 of them are first
decides: there they do less.

In the planted block, at the same length, ten units gain 20 % less than the block's mean difference: units that are
nearly silent on the side that is steered are left so. They disturb no other token.
"""

from typing import cast

import torch
from torch import Tensor

from patchclamp import steering, views
from patchclamp.interventions import Intervention, edit
from patchclamp.model import Model, wrap
from patchclamp.organisms.networks import MLP, MLPConfig
from patchclamp.organisms.tales import world
from patchclamp.steering import Units, control_vector, momentum
from patchclamp.steering.behaviour import last_logits
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="austeer",
    paper="Fine-Grained Activation Steering: Steering Less, Achieving More (arXiv:2602.04428)",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales",
)

UNITS, HELP, HARM, FEW = 64, 5, 5, 32
BLOCK, SITES = "module:activations.0", "z.*"
STRENGTHS = tuple(0.25 * 2 ** (step / 2) for step in range(15))
ENOUGH = 0.9
"""Of the direction's best effect on the prompts that choose: the least strength that brings it is taken."""
DRAWS = 8


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


# ── a block whose readout is known ────────────────────────────────────────────────────────────────────────────────────


@study.finding(
    "of planted units, five that help and five that harm, the ten with most momentum are those: precision",
    at_least=0.9,
    control="ten units drawn at random",
)
def planted(lab: Lab) -> Measured:
    blocks = lab.once(_blocks)
    return Measured.mean([b.precision(b.chosen) for b in blocks], control=[b.precision(b.drawn) for b in blocks])


@study.finding(
    "steering them gains as much as the block's mean difference of the same length: ratio of the gains",
    at_least=1.0,
    control="ten units drawn at random, as far",
    given=planted,
)
def gains(lab: Lab) -> Measured:
    """Of the target's logit, on inputs of the negative side that nothing was fitted on."""
    rows = lab.once(_gained)
    own, control = ([row[way][0] / row["block"][0] for row in rows] for way in ("chosen", "drawn"))
    return Measured.mean(own, control=control)


@study.finding(
    "and disturbs the other tokens half as much: ratio of the divergences",
    at_most=0.5,
    control="ten units drawn at random, as far",
    given=planted,
)
def disturbs_less(lab: Lab) -> Measured:
    """KL divergence of the side tokens' distribution from the unsteered one."""
    rows = lab.once(_gained)
    own, control = ([row[way][1] / row["block"][1] for row in rows] for way in ("chosen", "drawn"))
    return Measured.mean(own, control=control)


# ── a language model ──────────────────────────────────────────────────────────────────────────────────────────────────


@study.finding(
    "the direction of every block, added, makes bad reviews good: rise of the share of positive verdicts",
    at_least=0.1,
    control="directions drawn at random, as long",
)
def steers(lab: Lab) -> Measured:
    """Without this premise a share of its effect means nothing."""
    rows = lab.once(_effects)
    own, control = (torch.cat([row[name].mean(0) for row in rows]) for name in ("direction", "random direction"))
    return Measured.mean(own, control=control)


@study.finding(
    "32 units do most of what the whole direction does: share of its effect",
    at_least=0.9,
    control="32 units drawn at random, as strongly",
    given=steers,
)
def few(lab: Lab) -> Measured:
    """Reviews of other things than those that fitted and chose; at the least strength that is enough for those."""
    return Measured.mean(_shares(lab, "units"), control=_shares(lab, "random"))


@study.finding(
    "as many random units do next to nothing: share of its effect", at_most=0.2, control="the 32 units", given=steers
)
def random(lab: Lab) -> Measured:
    """Mean over eight draws, at the strength of the 32."""
    return Measured.mean(_shares(lab, "random"), control=_shares(lab, "units"))


@study.finding(
    "the 32 units scaled by their value, as published, do so too: share of its effect",
    at_least=0.9,
    control="32 units drawn at random, scaled as strongly",
    given=steers,
)
def published(lab: Lab) -> Measured:
    return Measured.mean(_shares(lab, "published"), control=_shares(lab, "published, random"))


@study.figure("share of positive verdicts on bad reviews, by strength")
def curve(lab: Lab):
    ways = {name: draws[0] for name, draws in _ways(lab, lab.model).items() if "random d" not in name}
    curves = {name: [float(_positive(lab.model, 1, do(s)).mean()) for s in STRENGTHS] for name, do in ways.items()}
    return views.lines(list(STRENGTHS), curves, x_title="strength", y_title="share of probability")


# ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Block:
    """A layer of 64 ReLU units: five that one side of a contrast raises, five that it lowers, the rest neutral.

    The target's logit is the sum of those that help less those that harm; twenty side tokens read the other 54. Inputs
    are one number for each unit, which differs within pairs too, and the side.
    """

    def __init__(self, seed: int, size: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        moved = torch.tensor([1.0] * HELP + [-1.0] * HARM + [0.0] * (UNITS - HELP - HARM))
        network = MLP(MLPConfig(widths=(UNITS + 1, UNITS, 21)))
        inner, outer = cast(list[torch.nn.Linear], list(network.layers))
        outer.weight.data[0] = moved
        outer.weight.data[1:] = torch.randn(20, UNITS, generator=self.generator) * (moved == 0) / 7
        outer.bias.data.zero_()
        inner.weight.data[:] = torch.cat([0.5 * torch.eye(UNITS), size * moved[:, None]], 1)
        inner.bias.data.fill_(1.0)
        self.model = wrap(network.eval(), name=f"a planted block, seed {seed}")
        high, low = (self._held(side) for side in (1, -1))
        every = Units({BLOCK: momentum(high, low)})
        self.chosen, self.drawn = every.most(HELP + HARM), every.drawn(HELP + HARM, seed=seed)
        self.difference = (high - low).mean(0)

    def inputs(self, side: int) -> Tensor:
        return torch.cat([torch.randn(100, UNITS, generator=self.generator), torch.full((100, 1), float(side))], 1)

    def _held(self, side: int) -> Tensor:
        return self.model.run({"inputs": self.inputs(side)}, record=BLOCK)[BLOCK]

    def precision(self, units: Units) -> float:
        """Of ten units, the share that was planted: the first ten."""
        return float((units.momentum[BLOCK][: HELP + HARM] != 0).float().mean())

    def gained(self) -> dict[str, tuple[float, float]]:
        """By way, the rise of the target's logit and the divergence of side tokens; all move the block as far."""
        inputs = {"inputs": self.inputs(-1)}

        def run(do: list[Intervention]) -> tuple[Tensor, Tensor]:
            found = self.model.run(inputs, do=do, record=BLOCK)
            assert found.logits is not None
            return found[BLOCK], found.logits

        clean, logits = run([])
        ways = {"chosen": self.chosen.apply(1.0), "drawn": self.drawn.apply(1.0)}
        moves = {name: run(do)[0] - clean for name, do in ways.items()} | {"block": self.difference.expand_as(clean)}
        length = float(moves["chosen"].norm(dim=-1).mean())
        found = {}
        for name, move in moves.items():
            far = move * (length / move.norm(dim=-1).mean())
            after = run([edit(BLOCK, lambda x, far=far, **_: x + far)])[1]
            before, now = (x[:, 1:].double().log_softmax(-1) for x in (logits, after))
            divergence = (now.exp() * (now - before)).sum(-1).mean()
            found[name] = float((after - logits)[:, 0].mean()), float(divergence)
        return found


def _blocks(lab: Lab) -> list[_Block]:
    size = 0.0 if lab.untrained else 0.75
    return [_Block(1000 * lab.seed + draw, size) for draw in range(20 if lab.full else 10)]


def _gained(lab: Lab) -> list[dict[str, tuple[float, float]]]:
    return [block.gained() for block in lab.once(_blocks)]


def _models(lab: Lab) -> list[Model]:
    """The model, and of `tales` its other seeds."""
    return [lab.model, *(map(lab.load, ("tales-1", "tales-2")) if lab.truth.name == "tales" else ())]


def _reviews(things: tuple[str, ...], opinions: tuple[str, ...]) -> list[str]:
    return [f"The {thing} was {opinion}.\nThe review is" for thing in things for opinion in opinions]


def _ways(lab: Lab, model: Model) -> dict[str, list]:
    """What is done at a strength, one or several draws of each way."""
    lab.need(model.tokenizer is not None, "a model with a tokenizer, since its prompts are text")
    # Each good opinion with each bad one: the more pairs, the fewer units agree in all of them.
    texts = [[], []]
    for good in world.POSITIVE[:5]:
        for bad in world.NEGATIVE[:5]:
            for side, opinion in zip(texts, (good, bad), strict=True):
                side += _reviews(world.REVIEWED[:6], (opinion,))
    every = steering.units(model, *texts, sites=SITES)
    # To add the difference of the heads' outputs is to add that of what attention adds to the stream.
    whole = control_vector(model, *texts, sites="attn_out.*")
    few, drawn = every.most(FEW), [every.drawn(FEW, seed=100 * lab.seed + n) for n in range(DRAWS)]
    others = [whole.random(seed=100 * lab.seed + n) for n in range(DRAWS)]
    return {
        "direction": [whole.apply],
        "random direction": [other.apply for other in others],
        "units": [few.apply],
        "random": [units.apply for units in drawn],
        "published": [lambda s: few.apply(s, published=True)],
        "published, random": [lambda s, units=units: units.apply(s, published=True) for units in drawn],
    }


def _effects(lab: Lab) -> list[dict[str, Tensor]]:
    """By model and way the rise on the reviews that judge, by draw and review."""
    return [_rises(lab, model) for model in lab.progress(_models(lab), "models")]


def _rises(lab: Lab, model: Model) -> dict[str, Tensor]:
    ways = _ways(lab, model)
    clean = [_positive(model, half, []) for half in (0, 1)]

    def curve(name: str) -> list[float]:
        return [float((_positive(model, 0, ways[name][0](s)) - clean[0]).mean()) for s in STRENGTHS]

    most = max(whole := curve("direction"))
    chosen = {"direction": STRENGTHS[whole.index(most)]}
    for name in ("units", "published"):
        rises = curve(name)
        enough = (s for s, rise in zip(STRENGTHS, rises, strict=True) if rise >= ENOUGH * most)
        chosen[name] = next(enough, STRENGTHS[rises.index(max(rises))])
    chosen |= {"random direction": chosen["direction"], "random": chosen["units"]}
    chosen["published, random"] = chosen["published"]
    return {
        name: torch.stack([_positive(model, 1, do(chosen[name])) - clean[1] for do in draws])
        for name, draws in ways.items()
    }


def _shares(lab: Lab, name: str) -> Tensor:
    """Of the direction's effect, by model and review; mean over draws."""
    return torch.cat([row[name].mean(0) / row["direction"].mean() for row in lab.once(_effects)])


def _positive(model: Model, half: int, do: list[Intervention]) -> Tensor:
    """By bad review that chooses (0) or judges (1), the share of good verdicts in the probability of both."""
    probabilities = last_logits(model, _reviews(world.REVIEWED[6 + 2 * half : 8 + 2 * half], world.NEGATIVE), do)
    probabilities = probabilities.double().softmax(-1)
    good, bad = (
        model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("positive", "negative")
    )
    return probabilities[:, good] / (probabilities[:, good] + probabilities[:, bad])
