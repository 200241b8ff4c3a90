"""Dissecting Language Models: Machine Unlearning via Selective Pruning (Pochinkov and Schoots 2024).

Neurons and value channels that are active on one kind of text and not on other text are removed, a few at a time, by
the ratio of their mean size on the two. The one skill goes and the rest stays; as many units at random take neither,
the most active ones take more of the rest, and with the roles of the texts swapped the skill stays. Here the skill is
to continue programs in the two invented programming languages, the rest is all other text that the model was trained
on. Texts on which units are chosen and texts on which the loss is measured are different ones.

With the roles swapped programs stay, but the rest does not go: it is many skills, of which no fifth of the neurons is
the whole (2 points lost). Against one other skill, continuing Spanish, 6 and 7 points of 39 go (two draws) and none of
programs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from patchclamp import editing, views
from patchclamp.editing import Pruning, Units
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="selective-pruning",
    paper="Dissecting Language Models: Machine Unlearning via Selective Pruning (arXiv:2403.01267)",
    seed="000_14db195f17440023.txt",
    organism="tales",
)

SHARE, STEPS = 0.04, 10  # of neurons and of value channels, a step
UNTIL = 0.15  # of the skill, on the texts that units are chosen on: other texts may keep a little more
DRAWS = 3  # of random units


@study.identity(
    "taking units out of the weights is holding them at zero: largest difference of a logit",
    tolerance=1e-6,
    control="as many other units held at zero",
    breaks=1e-2,
)
def weights_are_hooks(lab: Lab) -> Measured:
    units = lab.once(_texts_and_units, lab.seed).units or _drawn(lab)
    tokens = torch.randint(0, 99, (4, 12), generator=lab.generator)
    hooked, other = (
        lab.model.run(tokens, do=chosen.ablation()).logits for chosen in (units, units.drawn(lab.model, lab.seed + 9))
    )
    with units.removal(lab.model).applied(lab.model):
        removed = lab.model.run(tokens).logits
    return Measured.gap(hooked, removed, control=(other, removed))


@study.identity("removing no units changes no bit", tolerance=0.0)
def nothing_is_nothing(lab: Lab) -> Measured:
    tokens = torch.randint(0, 99, (4, 12), generator=lab.generator)
    clean = lab.model.run(tokens).logits
    with Units.of({}).removal(lab.model).applied(lab.model):
        return Measured.gap(lab.model.run(tokens).logits, clean)


@study.finding("the model continues programs: next-token accuracy", at_least=0.5, control="fresh weights")
def continues_programs(lab: Lab) -> Measured:
    code = [text for seed in _seeds(lab) for text in lab.once(_texts, seed).code]
    fresh = editing.next_token_accuracy(lab.fresh(), code)
    return Measured.mean(editing.next_token_accuracy(lab.model, code), control=fresh)


@study.finding(
    "after selective pruning little of that skill is left: accuracy as a share of what it was",
    at_most=0.2,
    control="as many units of each layer at random",
    given=continues_programs,
)
def the_skill_goes(lab: Lab) -> Measured:
    left = lab.once(_left)
    return Measured.mean(left["selective"][0], control=left["random"][0])


@study.finding(
    "and nearly all of the rest: accuracy on all other text as a share of what it was",
    at_least=0.9,
    control="as many units, those most active on programs",
    given=the_skill_goes,
)
def the_rest_stays(lab: Lab) -> Measured:
    left = lab.once(_left)
    return Measured.mean(left["selective"][1], control=left["active"][1])


@study.finding(
    "with the roles of the texts swapped the skill stays",
    at_least=0.9,
    control="the roles as they should be",
    given=continues_programs,
)
def swapped_roles_keep_it(lab: Lab) -> Measured:
    left = lab.once(_left)
    return Measured.mean(left["swapped"][0], control=left["selective"][0])


@study.finding(
    "one step of a fifth of the neurons alone: points of accuracy that programs lose",
    at_least=0.15,
    control="as many neurons of each layer at random",
    given=continues_programs,
)
def a_fifth_takes_the_skill(lab: Lab) -> Measured:
    """Test and thresholds of the trial of the method, on the points of accuracy themselves."""
    lost = lab.once(_lost)
    return Measured.mean(lost["mlp_post"][0], control=lost["random mlp_post"][0])


@study.finding(
    "and all other text",
    at_most=0.02,
    control="the fifth of the neurons most active on programs",
    given=a_fifth_takes_the_skill,
)
def a_fifth_leaves_the_rest(lab: Lab) -> Measured:
    lost = lab.once(_lost)
    return Measured.mean(lost["mlp_post"][1], control=lost["active mlp_post"][1])


@study.finding(
    "which a fifth chosen with the roles swapped takes",
    at_least=0.15,
    control="the roles as they should be",
    given=a_fifth_takes_the_skill,
)
def a_swapped_fifth_takes_the_rest(lab: Lab) -> Measured:
    lost = lab.once(_lost)
    return Measured.mean(lost["swapped mlp_post"][1], control=lost["mlp_post"][1])


@study.finding(
    "a fifth of the value channels alone takes programs as well: points of accuracy",
    at_least=0.15,
    control="as many value channels of each layer at random",
    given=continues_programs,
)
def attention_is_specialised_too(lab: Lab) -> Measured:
    lost = lab.once(_lost)
    return Measured.mean(lost["z"][0], control=lost["random z"][0])


@study.figure("Accuracy on programs and on the rest, as units are removed")
def curve(lab: Lab):
    steps = lab.once(_texts_and_units, lab.seed).curve
    return views.lines(
        [step.removed for step in steps],
        {"programs": [step.forget for step in steps], "the rest": [step.retain for step in steps]},
        title="Selective pruning",
        x_title="share of units removed",
    )


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Texts:
    """Programs and everything else, of which one part chooses units and the other judges."""

    code: list[str]
    rest: list[str]
    code_to_choose: list[str]
    rest_to_choose: list[str]


def _texts(lab: Lab, seed: int) -> Texts:
    lab.need(lab.truth.writer is not None, "a model whose training text can be written anew, with programs in it")
    few, many = 48, 160
    code = [[d.text for d in lab.truth.documents(few, seed=4 * seed + i, kind="code")] for i in (0, 1)]
    rest = [[d.text for d in lab.truth.documents(many, seed=4 * seed + i) if d.kind != "code"] for i in (2, 3)]
    return Texts(code[0], rest[0], code[1], rest[1])


def _texts_and_units(lab: Lab, seed: int) -> Pruning:
    texts = lab.once(_texts, seed)
    return editing.prune(
        lab.model,
        texts.code_to_choose,
        texts.rest_to_choose,
        mlp=SHARE,
        attention=SHARE,
        steps=STEPS,
        until=UNTIL,
        budget=0.1,
    )


def _left(lab: Lab) -> dict[str, tuple[Tensor, Tensor]]:
    """For each way to choose as many units: what is left of the skill and of the rest, one share a text."""
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for seed in _seeds(lab):
        texts, units = lab.once(_texts, seed), lab.once(_texts_and_units, seed).units
        mine, theirs = (editing.activity(lab.model, t) for t in (texts.code_to_choose, texts.rest_to_choose))
        mlp, attention = (_share(lab, units, kind) for kind in ("mlp_post", "z"))
        ways = {
            "selective": [units],
            "random": [units.drawn(lab.model, seed + draw) for draw in range(DRAWS)],
            "active": [editing.choose(mine, None, mlp=mlp, attention=attention)],
            "swapped": [editing.choose(theirs, mine, mlp=mlp, attention=attention)],
        }
        was = [editing.next_token_accuracy(lab.model, t) for t in (texts.code, texts.rest)]
        for name, sets in ways.items():
            parts = found.setdefault(name, ([], []))
            for chosen in sets:
                with chosen.removal(lab.model).applied(lab.model):
                    for part, text, before in zip(parts, (texts.code, texts.rest), was, strict=True):
                        lost = before - editing.next_token_accuracy(lab.model, text)  # text by text: of unlike ease
                        part.append(1 - lost / before.mean())
    return {name: (torch.cat(code), torch.cat(rest)) for name, (code, rest) in found.items()}


def _lost(lab: Lab) -> dict[str, tuple[Tensor, Tensor]]:
    """A fifth of one kind of units at once: points of accuracy that programs and the rest lose, one number a text.

    Over several draws of text, since 2 points are within one draw's interval.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for seed in range(3 * lab.seed, 3 * lab.seed + (6 if lab.full else 3)):
        texts = lab.once(_texts, seed)
        mine, theirs = (editing.activity(lab.model, t) for t in (texts.code_to_choose, texts.rest_to_choose))
        was = [editing.next_token_accuracy(lab.model, t) for t in (texts.code, texts.rest)]
        for kind, mlp, attention in (("mlp_post", 0.2, 0.0), ("z", 0.0, 0.2)):
            pairs = {"": (mine, theirs), "active ": (mine, None), "swapped ": (theirs, mine)}
            ways = {
                f"{name}{kind}": editing.choose(*pair, mlp=mlp, attention=attention) for name, pair in pairs.items()
            }
            ways[f"random {kind}"] = ways[kind].drawn(lab.model, seed)
            for name, units in ways.items():
                with units.removal(lab.model).applied(lab.model):
                    now = [editing.next_token_accuracy(lab.model, t) for t in (texts.code, texts.rest)]
                found.setdefault(name, []).append((was[0] - now[0], was[1] - now[1]))
    return {name: (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])) for name, parts in found.items()}


def _seeds(lab: Lab) -> range:
    return range(lab.seed, lab.seed + (3 if lab.full else 1))


def _share(lab: Lab, units: Units, kind: str) -> float:
    """The share of all units of a kind that was removed."""
    every = sum(editing.count(lab.model, f"{kind}.{layer}") for layer in range(lab.model.n_layers))
    return sum(len(i) for site, i in units.of_site.items() if site.startswith(f"{kind}.")) / every


def _drawn(lab: Lab) -> Units:
    """Some units of each layer, where none were chosen."""
    return Units.of({f"mlp_post.{layer}": [0, 1] for layer in range(lab.model.n_layers)}).drawn(lab.model, lab.seed)
