"""Disentangling recall and reasoning in transformer models through layer-wise attention and activation analysis
(Fartale et al. 2025).

The paper says that taking away the heads that recall facts need costs facts 15 points and leaves reasoning as it was,
and the other way round, and that single neurons tell the two apart less well. Here recall is one stored fact about a
person, and reasoning what follows from two of them (where somebody lives, and what is spoken there).

In a compiled network whose circuits are known the method has to find those that are disjoint, and to say so where one
behaviour is a step of the other. That a trained network has two sets is not assumed: `verdict` may be "none".
"""

import random
from typing import Literal

import numpy as np

import patchclamp as pc
from patchclamp.model import Model
from patchclamp.organisms.compiled.compile import compile
from patchclamp.organisms.compiled.language import (
    Expression,
    Value,
    aggregate,
    both,
    indices,
    latest,
    select,
    tokens,
)
from patchclamp.organisms.compiled.program import Program
from patchclamp.organisms.tales import world
from patchclamp.patching.dissociate import Dissociation, dissociate, firing_differences
from patchclamp.studies.behaviour import answer_logits, task_of
from patchclamp.studies.lab import Lab, random_weights
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study
from patchclamp.tasks import Task

study = Study(
    name="recall-vs-reasoning",
    paper="Disentangling Recall and Reasoning in Transformer Models (arXiv:2510.03366)",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales",
)

CHOOSE, JUDGE = 32, 64  # prompts
RANDOM = 20
LETTERS = tuple("abcdef")
RECALL, REASON, THROUGH = "R", "S", "T"  # the last token says what is asked; T reasons from what R recalls
FACTS = dict(zip(LETTERS, "cfbead", strict=True))


@study.finding("the model recalls facts and infers from two", at_least=0.9, control="the corrupted prompts")
def answers(lab: Lab) -> Measured:
    """Share of prompts of either kind whose right answer is the likeliest of all tokens."""
    hits: dict[Literal["clean", "corrupt"], list] = {"clean": [], "corrupt": []}
    for task in lab.once(_tasks, JUDGE, 1):
        for side, found in hits.items():
            found.append(pc.metrics.top1(answer_logits(lab.model, task, side), task).numpy())
    return Measured.share(np.concatenate(hits["clean"]), control=np.concatenate(hits["corrupt"]))


@study.finding(
    "without the heads chosen for recall, facts lose more than inferences",
    at_least=0.15,
    control="as many heads at random",
    given=answers,
)
def recall_is_selective(lab: Lab) -> Measured:
    """Difference of the falls in accuracy, under mean ablation; heads were chosen on other prompts."""
    return _selectivity(lab.once(_found), "a")


@study.finding(
    "without the heads chosen for reasoning, inferences lose more than facts",
    at_least=0.15,
    control="as many heads at random",
    given=answers,
)
def reasoning_is_selective(lab: Lab) -> Measured:
    return _selectivity(lab.once(_found), "b")


@study.finding(
    "as many heads with the largest activations are not selective",
    at_most=0.03,
    control="the heads chosen",
    given=reasoning_is_selective,
)
def large_heads_are_not(lab: Lab) -> Measured:
    """Mean of both directions."""
    found = lab.once(_found)
    large, chosen = (np.concatenate([_differences(found, own, of + own) for own in "ab"]) for of in ("large ", ""))
    return Measured.mean(large, control=chosen)


@study.finding(
    "recall and reasoning are a double dissociation: the part of the loss that the other does not share",
    at_least=0.5,
    control="of the heads with the largest activations",
    given=answers,
)
def doubly_dissociated(lab: Lab) -> Measured:
    """Of the direction in which it is least, under mean or zero ablation."""
    found = lab.once(_found)
    return Measured.number(_unshared(found, ""), control=_unshared(found, "large "))


@study.finding(
    "neurons chosen by how they fire are less selective than heads", at_most=0.15, control="the heads", given=answers
)
def neurons_are_less_robust(lab: Lab) -> Measured:
    """Mean over both directions; as large a share of neurons as of heads, of those that fire more for the task."""
    neurons, heads = lab.once(_found_neurons), lab.once(_found)
    values = [np.concatenate([_differences(found, own, own) for own in "ab"]) for found in (neurons, heads)]
    return Measured.mean(values[0], control=values[1])


@study.identity(
    "with the clean activation in every layer the corrupted run is the clean one",
    tolerance=1e-5,
    control="the MLPs' alone",
    breaks=1e-2,
)
def all_layers_restore(lab: Lab) -> Measured:
    task = lab.once(task_of)[:16]
    clean = lab.model.run(task.clean, attention_mask=task.mask, record=["z.*", "mlp_out.*", "resid_pre.0"])
    heads, mlps = (
        [pc.patch(f"{kind}.{layer}", clean) for layer in range(lab.model.n_layers)] for kind in ("z", "mlp_out")
    )
    whole, some = (
        answer_logits(lab.model, task, "corrupt", do) for do in ([pc.patch("resid_pre.0", clean), *heads, *mlps], mlps)
    )
    right = answer_logits(lab.model, task, "clean")
    size = right.abs().max()
    return Measured.gap(whole / size, right / size, control=(some / size, right / size))


@study.finding(
    "of two planted circuits that are disjoint, both are found exactly: the share of heads that are rightly placed",
    at_least=1.0,
    control="the same network with fresh weights",
)
def planted_circuits_are_found(lab: Lab) -> Measured:
    """Over all heads: chosen for the first task, for the second, or for neither; with room for more than are there."""
    own = lab.once(_circuits)
    shares = []
    for fresh in (lab.untrained, True):
        found = lab.once(_planted, REASON, fresh)
        sites = lab.once(_compiled).sites("z.*.*")
        right = [all((site in found.chosen[name]) == (site in own[name]) for name in "ab") for site in sites]
        shares.append(np.mean(right))
    return Measured.number(shares[0], control=shares[1])


@study.finding(
    "they are a double dissociation: the part of the loss that the other does not share",
    at_least=0.5,
    control="of as many other heads",
    given=planted_circuits_are_found,
)
def planted_double(lab: Lab) -> Measured:
    found = lab.once(_planted, REASON, lab.untrained)
    others = [
        found.unshared(own, to, f"random {own} {draw}")
        for own in "ab"
        for to in found.ablations
        for draw in range(found.random)
    ]
    return Measured.number(_unshared(found, "") if found.verdict == "double" else 0.0, control=others)


@study.finding(
    "where reasoning goes through recall, recall is not called separate: its selectivity",
    at_most=0.03,
    control="that of the heads chosen for reasoning",
    given=planted_circuits_are_found,
)
def shared_circuits_are_not_separable(lab: Lab) -> Measured:
    """The same network, of the question whose second step starts from the fact; `verdict` says "only b"."""
    found = lab.once(_planted, THROUGH, lab.untrained)
    return Measured.mean(_differences(found, "a", "a"), control=_differences(found, "b", "b"))


@study.figure("What each head does for recall and for reasoning")
def effects(lab: Lab):
    found = lab.once(_found).effects
    assert found is not None
    return pc.views.heatmap(found, title="share of the behaviour that goes with a head")


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


def _tasks(lab: Lab, n: int, seed: int) -> tuple[Task, Task]:
    lab.need(lab.truth.name.startswith("tales"), "a model that was taught the facts of the world of `tales`")
    n = 2 * n if lab.full else n
    return pc.tasks.facts(lab.model, n=n, seed=10 * lab.seed + seed), _inferences(lab.model, n, 10 * lab.seed + seed)


def _inferences(model: Model, n: int, seed: int) -> Task:
    """What follows from where somebody lives; corrupted: another person of as many tokens and another answer."""
    rng, known = random.Random(seed), world.answers()
    lengths = {
        person.name: len(model.tokenizer(person.name, add_special_tokens=False)["input_ids"])
        for person in world.people()[0]
    }
    rows = []
    while len(rows) < n:
        relation, (template, *_) = rng.choice(list(world.TWO_HOP_TEMPLATES.items()))
        one, other = rng.sample(sorted(lengths), 2)
        right, wrong = known[one, relation], known[other, relation]
        if lengths[one] == lengths[other] and right != wrong:
            texts = (template.replace("{SUBJECT}", name) for name in (one, other))
            rows.append((*texts, f" {right}", f" {wrong}"))
    clean, corrupt, answers, wrong = zip(*rows, strict=True)
    return Task.from_prompts(model, clean=clean, corrupt=corrupt, answers=answers, wrong=wrong, name="two hops")


def _found(lab: Lab) -> Dissociation:
    budget = max(1, lab.model.n_layers * lab.model.n_heads // 4)
    return dissociate(
        lab.model,
        *lab.once(_tasks, CHOOSE, 0),
        budget=budget,
        judged_on=lab.once(_tasks, JUDGE, 1),
        random=RANDOM,
        seed=lab.seed,
    )


def _found_neurons(lab: Lab) -> Dissociation:
    """A quarter of all, as of the heads; none where none differs."""
    tasks = lab.once(_tasks, CHOOSE, 0)
    table = firing_differences(lab.model, *tasks)
    count = table.auroc.size // 4
    chosen = {}
    for name, sign in (("a", 1), ("b", -1)):
        worth = np.where(table.q.values < 0.05, sign * (table.auroc.values - 0.5), 0.0)
        order = np.argsort(-worth.ravel(), kind="stable")[:count]
        places = [divmod(int(at), worth.shape[1]) for at in order if worth.ravel()[at] > 0]
        chosen[name] = [f"mlp_post.{table.layer.values[row]}.{neuron}" for row, neuron in places]
    judged = lab.once(_tasks, JUDGE, 1)
    return dissociate(lab.model, *tasks, "mlp_post.*.*", chosen=chosen, judged_on=judged, random=RANDOM, seed=lab.seed)


def _differences(found: Dissociation, own: str, of: str) -> np.ndarray:
    """One value for each prompt of its own task, beside one of the other: what they lose, less what those do."""
    (other,) = set("ab") - {own}
    mine, theirs = found.drop(of, own), found.drop(of, other)
    count = min(len(mine), len(theirs))
    return mine[:count] - theirs[:count]


def _selectivity(found: Dissociation, own: str) -> Measured:
    return Measured.mean(_differences(found, own, own), control=found.randoms(own))


def _unshared(found: Dissociation, kind: str) -> float:
    return min(found.unshared(own, to, f"{kind}{own}") for own in "ab" for to in found.ablations)


# ── the compiled network ──────────────────────────────────────────────────────────────────────────────────────────────


def _program() -> Program:
    """Six letters and what is asked. R: the fact of the first letter. S: what last followed the second letter.
    T: what last followed the letter that is the fact of the first.
    """

    def at(place: int, asked: str, name: str) -> Expression:
        chosen = select(indices, tokens, lambda key, query: query in asked and key == place)
        return aggregate(chosen, tokens, name=name)

    subject, wanted = at(1, RECALL + THROUGH, "subject"), at(2, REASON, "wanted")
    fact = subject.map(FACTS.get, name="fact")
    before = aggregate(select(indices, indices, lambda key, query: key == query - 1), tokens, name="before")
    after = aggregate(latest(select(before, wanted)), tokens, name="after wanted")
    link = both(tokens, fact, lambda asked, found: found if asked == THROUGH else None, name="link")
    through = aggregate(latest(select(before, link)), tokens, name="after fact")
    said = both(
        after.otherwise("-"), through.otherwise("-"), lambda one, two: one if one != "-" else two, name="inferred"
    )
    own = both(tokens, fact.otherwise("-"), lambda asked, found: found if asked == RECALL else "-", name="recalled")
    answer = both(own, said, lambda one, two: one if one != "-" else two, name="answer")
    return Program("recall and reasoning", answer, (*LETTERS, RECALL, REASON, THROUGH), 7, _drawn, 7)


def _drawn(rng: random.Random, n: int) -> list[Value]:
    return [*rng.choices(LETTERS, k=n - 1), rng.choice((RECALL, REASON, THROUGH))]


def _planted(lab: Lab, other: str, fresh: bool) -> Dissociation:
    """Recall against another question, in the compiled network."""
    model, task = lab.once(_compiled), lab.once(_programs)
    model = random_weights(model, 1000 * lab.seed + 1) if fresh else model
    return dissociate(model, task[RECALL], task[other], budget=5, random=RANDOM, seed=lab.seed)


def _compiled(lab: Lab) -> Model:
    return compile(_program())


def _programs(lab: Lab) -> dict[str, Task]:
    """16 inputs for each question; corrupted: others with another answer."""
    return {asked: _asked(asked, 16, lab.seed) for asked in (RECALL, REASON, THROUGH)}


def _asked(asked: str, n: int, seed: int) -> Task:
    program, rng = _program(), random.Random(f"{asked}/{seed}")

    def draw() -> tuple[list[str], str]:
        while True:
            letters = [*rng.choices(LETTERS, k=6), asked]
            last = program.evaluate(letters)[-1]
            if last in LETTERS:
                return letters, str(last)

    rows = []
    while len(rows) < n:
        (clean, right), (corrupt, wrong) = draw(), draw()
        if right != wrong:
            rows.append((program.ids(clean), program.ids(corrupt), *map(program.vocabulary.index, (right, wrong))))
    clean, corrupt, answers, wrong = zip(*rows, strict=True)
    return Task.from_tokens(clean=clean, corrupt=corrupt, answers=answers, wrong=wrong, name=asked)


def _circuits(lab: Lab) -> dict[str, set]:
    """The heads that R alone reads, and those that S alone reads."""
    home = lab.once(_compiled).truth.alignment  # type: ignore[attr-defined]
    return {"a": {home["subject"]}, "b": {home[name] for name in ("wanted", "before", "after wanted")}}
