"""Punctuation and predicates in language models (Chauhan et al. 2025).

Where a sentence ends, a network may make a summary at the period, which later layers read instead of the words: then
the period's state is needed, and suffices. The paper finds this in GPT-2 at several layers, elsewhere less or not at
all, and that kinds of statement ("if ... then", "for all") are processed by different layers.

Of two compiled networks that answer alike, one reads its answer from a summary at the period and one from the noun, so
that it is known what necessity, sufficiency and interchange must say. Of `tales` it is asked for statements that are
true or false, plain and negated: what holds there is measured (it reads the country itself, and the period not at all).
"""

import random
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import patchclamp as pc
from patchclamp import metrics
from patchclamp.model import Model
from patchclamp.organisms.compiled.compile import compile
from patchclamp.organisms.compiled.language import Value, aggregate, latest, select, tokens
from patchclamp.organisms.compiled.program import Program
from patchclamp.organisms.tales import knowledge, world
from patchclamp.patching.carriers import carriers
from patchclamp.patching.pairs import Pairs
from patchclamp.studies.behaviour import answer_logits, task_of
from patchclamp.studies.lab import Lab, random_weights
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study
from patchclamp.tasks import Task
from patchclamp.tasks.example import Example, fill

study = Study(
    name="punctuation-predicates",
    paper="Punctuation and Predicates in Language Models (arXiv:2508.14067)",
    seed="000_14db195f17440023.txt",
    organism="tales",
)

NOUNS, WORDS = tuple("abcdef"), tuple("xyz")
NOUN, PERIOD = 2, 4  # places in a prompt of the compiled networks: <bos> word noun word . word ?
READS = 1  # the layer that reads the summary, or the noun: states are taken away from it on
NEAR_CHANCE = 1 / len(NOUNS) + 0.05


@study.finding("both compiled networks answer", at_least=0.95, control="fresh weights")
def compiled_networks_answer(lab: Lab) -> Measured:
    hits, control = (
        np.concatenate([_top1(_network(lab, kind, fresh), lab.once(_sentences)) for kind in ("period", "noun")])
        for fresh in (lab.untrained, True)
    )
    return Measured.share(hits, control=control)


@study.finding(
    "where a period carries a summary, it is needed: accuracy without it is at chance",
    at_most=NEAR_CHANCE,
    control="without as many other tokens",
    given=compiled_networks_answer,
)
def period_is_needed(lab: Lab) -> Measured:
    """From the layer on that reads it; under mean or zero ablation, whichever leaves more."""
    return _kept(lab.once(_carried, "period"), "necessity", max)


@study.finding(
    "there it suffices: accuracy with it alone",
    at_least=0.9,
    control="with as many other tokens alone",
    given=compiled_networks_answer,
)
def period_suffices(lab: Lab) -> Measured:
    return _kept(lab.once(_carried, "period"), "sufficiency", min)


@study.finding(
    "where the noun is read itself, nothing is lost without the period: accuracy",
    at_least=0.95,
    control="without the noun",
    given=compiled_networks_answer,
)
def noun_needs_no_period(lab: Lab) -> Measured:
    return _of_noun(lab, "necessity", min)


@study.finding(
    "there it does not suffice: accuracy with it alone is at chance",
    at_most=NEAR_CHANCE,
    control="with the noun alone",
    given=compiled_networks_answer,
)
def noun_is_not_in_the_period(lab: Lab) -> Measured:
    return _of_noun(lab, "sufficiency", max)


@study.finding(
    "interchange tells when the summary is made: answers that follow the period's state, where it is read",
    at_least=0.95,
    control="that follow the noun's state, there",
    given=compiled_networks_answer,
)
def interchange_finds_the_depth(lab: Lab) -> Measured:
    """One layer earlier it is the noun that they follow: `flips` is the figure of it."""
    model, task = _network(lab, "period", lab.untrained), lab.once(_sentences)
    found = [_follows(model, task, READS, task.labels[role]) for role in ("period", "noun")]
    return Measured.share(found[0], control=found[1])


@study.finding(
    "interchange by head, with Holm's correction, finds the planted heads and no other: share rightly judged",
    at_least=1.0,
    control="fresh weights",
    given=compiled_networks_answer,
)
def heads_are_found(lab: Lab) -> Measured:
    """A head is needed where its p-value for necessity is below .05, and where it is the planted summary or answer."""
    home = lab.once(_compiled, "period").truth.alignment  # type: ignore[attr-defined]
    planted = {home["summary"], home["answer"]}
    shares = []
    for fresh in (lab.untrained, True):
        model = _network(lab, "period", fresh)
        needed = _needed(model, lab.once(_sentences)[:32], lab.seed)
        shares.append(np.mean([(site in planted) == (str(site) in needed) for site in model.sites("z.*.*")]))
    return Measured.number(shares[0], control=shares[1])


@study.finding("the model knows whether statements are true", at_least=0.9, control="after corrupted statements")
def knows(lab: Lab) -> Measured:
    task = lab.once(_statements, False)
    hits = [metrics.accuracy(_logits(lab.model, task, side), task).numpy() for side in ("clean", "corrupt")]
    return Measured.share(hits[0], control=hits[1])


@study.finding(
    "behind the first layer, the statement's punctuation is needed: accuracy without it",
    at_most=0.6,
    control="without as many other tokens",
    given=knows,
)
def punctuation_is_needed(lab: Lab) -> Measured:
    """Chance is a half. The first layer at which a state can hold more than its token, so that none is chosen."""
    return _kept(lab.once(_carried_in_text), "necessity", max)


@study.finding(
    "behind the first layer, the statement's punctuation suffices: accuracy with it alone",
    at_least=0.9,
    control="with as many other tokens alone",
    given=knows,
)
def punctuation_suffices(lab: Lab) -> Measured:
    return _kept(lab.once(_carried_in_text), "sufficiency", min)


@study.finding(
    "exchanging two neighbouring layers costs plain and negated statements differently",
    at_least=0.1,
    control="two halves of the plain statements",
    given=knows,
)
def predicates_differ(lab: Lab) -> Measured:
    """Difference of accuracies, of the pair of layers (and the sign) that differ most on other statements."""
    lab.need(lab.model.n_layers > 1, "a model of two layers or more")
    plain, negated = lab.once(_swapped, False), lab.once(_swapped, True)
    first = np.arange(plain.shape[1]) // 2 % 2 == 0  # as many true ones as false ones in both
    return Measured.mean(_differs(plain, negated), control=_differs(plain[:, first], plain[:, ~first]))


@study.identity(
    "interchange with the prompt's own states changes nothing",
    tolerance=1e-6,
    control="with the other prompt's",
    breaks=1e-3,
)
def own_states_change_nothing(lab: Lab) -> Measured:
    lab.need(lab.model.n_layers > 1, "a model of two layers or more")
    task = lab.once(task_of)[:8]
    clean = _logits(lab.model, task, "clean")
    patched = [
        lab.model.run(
            task.clean,
            attention_mask=task.mask,
            do=[pc.patch("resid_pre.1", lab.model.run(ids, attention_mask=task.mask, record="resid_pre.1"))],
        ).logits
        for ids in (task.clean, task.corrupt)
    ]
    own, other = (task.at_answer(logits) for logits in patched if logits is not None)
    return Measured.gap(own, clean, control=(other, clean))


@study.identity("interchange of all tokens that differ, at the embeddings, is the other run", tolerance=1e-6)
def embeddings_are_the_prompt(lab: Lab) -> Measured:
    task = lab.once(task_of)[:8]
    source = lab.model.run(task.corrupt, attention_mask=task.mask, record="resid_pre.0")
    patch = pc.patch("resid_pre.0", source, pos=(task.clean != task.corrupt) & task.mask)
    patched = lab.model.run(task.clean, attention_mask=task.mask, do=[patch]).logits
    assert patched is not None
    return Measured.gap(task.at_answer(patched), _logits(lab.model, task, "corrupt"))


@study.identity(
    "layers frozen at what they wrote in this run change nothing",
    tolerance=1e-5,
    control="frozen at another run",
    breaks=1e-3,
)
def frozen_layers_change_nothing(lab: Lab) -> Measured:
    task, last = lab.once(task_of)[:8], lab.model.n_layers - 1
    found = []
    for ids in (task.clean, task.corrupt):
        source = lab.model.run(ids, attention_mask=task.mask, record=[f"attn_out.{last}", f"mlp_out.{last}"])
        do = pc.patching.freeze(lab.model, source, [last])
        found.append(answer_logits(lab.model, task, "clean", do))
    clean = _logits(lab.model, task, "clean")
    return Measured.gap(found[0], clean, control=(found[1], clean))


@study.figure("Answers that follow a component of the other statement, by the layer at which it is exchanged")
def flips(lab: Lab):
    task = lab.once(_statements, False)
    rows = [
        [float(_follows(lab.model, task, layer, places).mean()) for layer in range(lab.model.n_layers)]
        for places in task.labels.values()
    ]
    coords = {"component": list(task.labels), "layer": list(range(lab.model.n_layers))}
    return pc.views.heatmap(xr.DataArray(rows, dims=("component", "layer"), coords=coords), title="share that follows")


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


def _logits(model: Model, task: Task, side: str) -> Tensor:
    logits = model.run(getattr(task, side), attention_mask=task.mask).logits
    assert logits is not None
    return task.at_answer(logits)


def _top1(model: Model, task: Task) -> np.ndarray:
    return metrics.top1(_logits(model, task, "clean"), task).numpy()


def _kept(found: xr.Dataset, effect: str, worst: Any) -> Measured:
    """The score that is kept, under the ablation that is least good for the claim; all draws of the control."""
    value = worst(found[effect].sel(layer=READS).values)
    return Measured.number(value, control=found[f"{effect}_control"].sel(layer=READS).values.ravel())


def _follows(model: Model, task: Task, layer: int, places: Tensor) -> np.ndarray:
    """Whether each answer becomes the other prompt's, with these tokens' states from there."""
    pairs = Pairs(model, task.clean, task.corrupt, lambda x: x, task.mask)
    states = pairs.activations(f"resid_pre.{layer}")[1]
    where = torch.zeros_like(task.mask)
    where[torch.arange(len(task)), places] = True
    do = [pc.patch(f"resid_pre.{layer}", states, pos=where)]
    logits = task.at_answer(pairs.values(do))
    mine, theirs = logits.gather(1, task.answers), logits.gather(1, task.wrong)
    return (theirs > mine)[:, 0].numpy()


def _needed(model: Model, task: Task, seed: int) -> set[str]:
    """The heads whose necessity is significant; none where there is no behaviour that could need them."""
    ends = [float(metrics.logit_difference(_logits(model, task, side), task).mean()) for side in ("clean", "corrupt")]
    if abs(ends[0] - ends[1]) < 1e-5:
        return set()
    table = pc.patching.interchange(model, task, "z.*.*", permutations=500, seed=seed)
    return {
        str(site)
        for site in model.sites("z.*.*")
        if float(table["necessity_holm"].sel(layer=site.layer, head=site.unit)) < 0.05
    }


# ── statements of the world of `tales` ────────────────────────────────────────────────────────────────────────────────


def _statements(lab: Lab, negated: bool) -> Task:
    """Half of them true; corrupted: of another country, so that the answer is the other one."""
    lab.need(lab.truth.name.startswith("tales"), "a model that was taught the statements of the world of `tales`")
    rng, answers = random.Random(f"{lab.seed}/{negated}"), world.answers()
    template = knowledge.STATEMENTS[1]
    assert template.endswith("{COUNTRY}. Answer:")
    examples = []
    for index in range(512 if lab.full else 192):
        city = rng.choice(list(world.CAPITALS))
        home = answers[city, "country"]
        other = rng.choice([country for country in world.COUNTRIES if country != home])
        right, wrong = ("false", "true") if negated else ("true", "false")
        sides = ((home, right), (other, wrong))
        (said, answer), (instead, opposite) = sides if index % 2 else sides[::-1]
        texts = [
            fill(template, {"CITY": city, "VERB": "is not" if negated else "is", "COUNTRY": country})
            for country in (said, instead)
        ]
        examples.append(Example(*texts, answers=(f" {answer}",), wrong=(f" {opposite}",)))
    return Task.from_examples(lab.model, "negated statements" if negated else "statements", examples)


def _carried_in_text(lab: Lab) -> xr.Dataset:
    """Of the tokens between a statement's first and last that are punctuation."""
    task = lab.once(_statements, False)
    marks = {token for token in range(len(lab.model.tokenizer)) if lab.model.tokenizer.decode([token]).strip() in ".?"}
    where = torch.isin(task.clean, torch.tensor(sorted(marks - set(lab.model.tokenizer.all_special_ids)))) & task.mask
    where[torch.arange(len(task)), task.positions] = False
    return carriers(lab.model, task, where, score=metrics.accuracy, seed=lab.seed)


def _swapped(lab: Lab, negated: bool) -> np.ndarray:
    """Whether each statement is answered rightly with layers i and i + 1 exchanged: [i, statement]."""
    task, count = lab.once(_statements, negated), lab.model.n_layers
    rows = []
    for first in range(count - 1):
        order = [*range(first), first + 1, first, *range(first + 2, count)]
        model = pc.patching.reordered(lab.model, order)
        rows.append(metrics.accuracy(_logits(model, task, "clean"), task).numpy())
    return np.stack(rows)


def _differs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differences statement by statement on one half, of the pair of layers and sign that differ most on the other."""
    half = a.shape[1] // 2
    means = (a[:, :half] - b[:, :half]).mean(1)
    best = int(np.abs(means).argmax())
    return (a[best, half:] - b[best, half:]) * (1 if means[best] >= 0 else -1)


# ── the compiled networks ─────────────────────────────────────────────────────────────────────────────────────────────


def _program(kind: str) -> Program:
    """word noun word . word ? → the noun: by way of a head that takes it to the period, or read where it stands."""
    if kind == "period":
        ends = select(tokens, tokens, lambda key, query: key in NOUNS and query == ".")
        summary = aggregate(latest(ends), tokens, name="summary")
        answer = aggregate(
            select(tokens, tokens, lambda key, query: key == "." and query == "?"), summary, name="answer"
        )
    else:
        noun = tokens.map(lambda token: token if token in NOUNS else None, name="noun")  # so that layer 1 reads it
        asked = select(noun, tokens, lambda key, query: query == "?")
        answer = aggregate(latest(asked), noun, name="answer")
    return Program(f"answer at the {kind}", answer, (*NOUNS, *WORDS, ".", "?"), 6, _sentence, 6)


def _sentence(rng: random.Random, n: int) -> list[Value]:
    first, second, third = rng.choices(WORDS, k=3)
    return [first, rng.choice(NOUNS), second, ".", third, "?"]


def _compiled(lab: Lab, kind: str) -> Model:
    return compile(_program(kind))


def _network(lab: Lab, kind: str, fresh: bool) -> Model:
    model = lab.once(_compiled, kind)
    return random_weights(model, 1000 * lab.seed + 1) if fresh else model


def _sentences(lab: Lab) -> Task:
    """As many of each noun; corrupted: another noun in its place."""
    rng, program = random.Random(lab.seed), _program("period")
    number = program.vocabulary.index
    rows = []
    for index in range(20 * len(NOUNS)):
        noun = NOUNS[index % len(NOUNS)]
        words = list(_sentence(rng, 6))
        other = rng.choice([one for one in NOUNS if one != noun])
        sides = ([*words[: NOUN - 1], said, *words[NOUN:]] for said in (noun, other))
        rows.append((*map(program.ids, sides), number(noun), number(other)))
    clean, corrupt, answers, wrong = zip(*rows, strict=True)
    task = Task.from_tokens(clean=clean, corrupt=corrupt, answers=answers, wrong=wrong, name="sentences")
    places = {"noun": NOUN, "period": PERIOD}
    task.labels.update({name: torch.full((len(task),), place) for name, place in places.items()})
    return task


def _carried(lab: Lab, kind: str, place: int = PERIOD) -> xr.Dataset:
    task = lab.once(_sentences)
    where = torch.zeros_like(task.mask)
    where[:, place] = True
    return carriers(_network(lab, kind, lab.untrained), task, where, seed=lab.seed)


def _of_noun(lab: Lab, effect: str, worst: Any) -> Measured:
    found, noun = lab.once(_carried, "noun"), lab.once(_carried, "noun", NOUN)
    values = [one[effect].sel(layer=READS).values for one in (found, noun)]
    return Measured.number(worst(values[0]), control=values[1])
