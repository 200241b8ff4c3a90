"""Too late to recall: the two-hop problem in multimodal knowledge retrieval (Venhoff et al. 2025).

A language model with eyes can say who is in a picture, and knows facts about them by name, and yet cannot say the facts
from the picture: who it is gets formed after the early layers that recall what is known. Put the state that the name
has there where the picture is, and the facts come back; put it in later, and they do not. Naming first helps too.

Of `tales-vision` it is the checkpoint that was taught to name pictures and nothing else, its language model frozen,
that is asked; its facts were learnt from text. All pictures are new.
"""

from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import patchclamp as pc
from patchclamp.model import Model
from patchclamp.organisms.tales_vision import exam
from patchclamp.organisms.tales_vision.exam import Question
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="vlm-two-hop",
    paper="Too Late to Recall: Explaining the Two-Hop Problem in Multimodal Knowledge Retrieval (arXiv:2512.03276)",
    seed="002_c890b7b323703807.txt",
    organism="tales-vision",
)

NAME = 2  # tokens of a name: the picture's last two tokens are given its states
READABLE = 0.9  # accuracy at which a probe is said to read who it is


@study.finding("who is in the picture is said", at_least=0.9, control="somebody else's name")
def names(lab: Lab) -> Measured:
    """Share of questions whose picture is named, by the likeliest of all tokens."""
    asked = lab.once(_asked)
    named = [_naming(question) for question in asked]
    return Measured.share(_right(lab.once(_eyes), named), control=_right(lab.once(_eyes), named, _others(named)))


@study.finding("facts are said by name", at_least=0.95, control="somebody else's facts")
def knows_by_name(lab: Lab) -> Measured:
    asked = _by_name(lab.once(_asked))
    return Measured.share(_right(lab.once(_eyes), asked), control=_right(lab.once(_eyes), asked, _others(asked)))


@study.finding(
    "facts are lost by picture: naming less facts",
    at_least=0.2,
    control="naming less facts by name",
    given=knows_by_name,
)
def degrades(lab: Lab) -> Measured:
    asked = lab.once(_asked)
    named = _right(lab.once(_eyes), [_naming(question) for question in asked]).astype(float)
    lost, control = (named - _right(lab.once(_eyes), some) for some in (asked, _by_name(asked)))
    return Measured.mean(lost, control=control)


@study.finding(
    "the name's embeddings in place of the picture's last tokens bring them back: part of the gap",
    at_least=0.9,
    control="another person's",
    given=degrades,
)
def early_patch_recovers(lab: Lab) -> Measured:
    """Of questions whose picture is named and whose answer is known by name; 1 is as by name."""
    return Measured.mean(lab.once(_recovered, 0, False), control=lab.once(_recovered, 0, True))


@study.finding(
    "from the middle layer on they bring back nothing",
    at_most=0.15,
    control="at the embeddings",
    given=early_patch_recovers,
)
def late_patch_does_not(lab: Lab) -> Measured:
    """Of the later layers the one that brings back most."""
    later = [
        lab.once(_recovered, layer, False) for layer in range(lab.once(_eyes).n_layers // 2, lab.once(_eyes).n_layers)
    ]
    return Measured.mean(max(later, key=np.mean), control=lab.once(_recovered, 0, False))


@study.finding(
    "another person's embeddings do not give the right answer: accuracy",
    at_most=0.15,
    control="the right person's",
    given=degrades,
)
def another_person_does_not(lab: Lab) -> Measured:
    hits = [_patched(lab, 0, wrong) for wrong in (True, False)]
    return Measured.share(hits[0], control=hits[1])


@study.finding(
    "the picture's own later states, written earlier, bring back nothing",
    at_most=0.15,
    control="the name's embeddings",
    given=early_patch_recovers,
)
def back_patching_does_not(lab: Lab) -> Measured:
    """The best pair of layers on half of the questions, measured on the other half."""
    base, table = lab.once(_plain).astype(float), lab.once(_back_patched)
    gap, half = _gap(lab), len(base) // 2
    best = max(table, key=lambda pair: table[pair][:half].mean())
    return Measured.mean((table[best][half:] - base[half:]) / gap, control=lab.once(_recovered, 0, False)[half:])


@study.finding(
    "naming first, then answering, does: accuracy as a part of naming's",
    at_least=0.9,
    control="answering at once",
    given=degrades,
)
def naming_first_recovers(lab: Lab) -> Measured:
    """The model says the surname and goes on with the question about whom it said."""
    asked = lab.once(_asked)
    named = float(_right(lab.once(_eyes), [_naming(question) for question in asked]).mean())
    lab.need(named > 0, "a model that names a picture")
    values = [hits / named for hits in (_said_first(lab, asked), _right(lab.once(_eyes), asked))]
    return Measured.mean(values[0], control=values[1])


@study.finding(
    "who it is can be read from the picture's last token later than from the name: the first layer of which it can",
    at_least=1,
    control="from the name",
    given=degrades,
)
def formed_late(lab: Lab) -> Measured:
    """By a linear probe for all 80 people, on new pictures and texts; the number of layers where it never can.

    On `tales-vision` this does not hold: the encoder has mixed the picture's parts, so that a probe reads who it is at
    once. What is missing at first is not the information but the form in which recall reads it, as the patches say.
    """
    first = []
    for by_picture in (True, False):
        readable = [layer for layer, right in enumerate(lab.once(_probed, by_picture)) if right >= READABLE]
        first.append(min([*readable, lab.once(_eyes).n_layers]))
    return Measured.number(first[0], control=first[1])


@study.finding(
    "when facts are taught by picture, what follows from them is still lost: by name, less by picture",
    at_least=0.2,
    control="the facts themselves",
    given=degrades,
)
def second_hop_is_lost(lab: Lab) -> Measured:
    """In `tales-vision` after its second stage: what takes two hops, of people of whom it was never said."""
    lab.need(lab.truth.name == "tales-vision", "organism:tales-vision, whose pictures and facts are known")
    model, kinds = lab.model, exam.questions()
    lost = [
        _right(model, _by_name(asked)).astype(float) - _right(model, asked)
        for asked in (kinds["two hops by picture"], kinds["facts by picture"][:160])
    ]
    return Measured.mean(lost[0], control=lost[1])


@study.identity(
    "the picture's own states, patched, change nothing",
    tolerance=1e-5,
    control="another picture's",
    breaks=1e-3,
)
def own_states_change_nothing(lab: Lab) -> Measured:
    lab.need(lab.truth.name.startswith("tales-vision"), "organism:tales-vision, whose pictures and facts are known")
    asked = [question for question in exam.questions()["facts by picture"] if question.text.startswith("{SUBJECT}")][:8]
    inputs = exam.inputs(lab.model.tokenizer, asked, seed=lab.seed)
    where = _image(lab.once(_eyes), inputs["input_ids"])
    run = lab.once(_eyes).run(inputs, record="resid_pre.1")
    states = _at(run["resid_pre.1"], where)
    own, other = (
        lab.once(_eyes).run(inputs, do=[pc.patch("resid_pre.1", some, pos=where)]).logits
        for some in (states, states.roll(1, 0))
    )
    return Measured.gap(own, run.logits, control=(other, run.logits))


@study.figure("Accuracy by picture with the name's states at a layer, and with another person's")
def by_layer(lab: Lab):
    rows = [[float(_patched(lab, layer, w).mean()) for layer in range(lab.once(_eyes).n_layers)] for w in (False, True)]
    coords = {"states of": ["the name", "another name"], "layer": list(range(lab.once(_eyes).n_layers))}
    return pc.views.heatmap(xr.DataArray(rows, dims=("states of", "layer"), coords=coords), title="facts by picture")


def _eyes(lab: Lab) -> Model:
    return lab.load("tales-vision@1000") if lab.truth.name == "tales-vision" else lab.model


# ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _asked(lab: Lab) -> list[Question]:
    """Facts by picture; none was asked so in training of the checkpoint. Two of each person's four, in quick runs."""
    lab.need(lab.truth.name.startswith("tales-vision"), "organism:tales-vision, whose pictures and facts are known")
    kinds = exam.questions()
    asked = sorted([*kinds["facts by picture"], *kinds["facts never shown"]], key=lambda q: (q.subject, q.text))
    return asked if lab.full else asked[lab.seed % 2 :: 2]


def _judged(lab: Lab) -> list[Question]:
    """Those whose picture is named and whose answer is known by name; all, where there are too few to judge."""
    asked = lab.once(_asked)
    known = _right(lab.once(_eyes), [_naming(one) for one in asked]) & _right(lab.once(_eyes), _by_name(asked))
    kept = [question for question, right in zip(asked, known, strict=True) if right]
    return kept if len(kept) >= 8 else asked


def _naming(question: Question) -> Question:
    return Question(exam.NAMING, question.subject, question.subject.split()[-1], question.by_picture)


def _by_name(asked: list[Question]) -> list[Question]:
    return [replace(question, by_picture=False) for question in asked]


def _others(asked: list[Question]) -> list[str]:
    """The answer to the same question about somebody else; another one's, where nobody else is asked it."""
    answers: dict[str, list[str]] = {}
    for question in asked:
        answers.setdefault(question.text, []).append(question.answer)
    found = []
    for question in asked:
        others = [one for one in answers[question.text] if one != question.answer] or [
            one.answer for one in asked if one.answer != question.answer
        ]
        found.append(others[len(found) % len(others)])
    return found


def _right(model: Model, asked: list[Question], answers: list[str] | None = None, do: tuple = ()) -> np.ndarray:
    """Whether each answer (or each of `answers`) is the likeliest of all tokens."""
    wanted = asked if answers is None else [replace(q, answer=a) for q, a in zip(asked, answers, strict=True)]
    return (_said(model, exam.inputs(model.tokenizer, asked), do) == exam.answers(model.tokenizer, wanted)).numpy()


def _said(model: Model, inputs: dict[str, Tensor], do: tuple = ()) -> Tensor:
    logits = model.run(inputs, do=list(do)).logits
    assert logits is not None
    return logits[torch.arange(len(logits)), inputs["attention_mask"].sum(1) - 1].argmax(-1).cpu()


def _said_first(lab: Lab, asked: list[Question]) -> np.ndarray:
    """`The surname of [picture] is Baker. Baker was born in`: with the word that the model says."""
    tokenizer = lab.model.tokenizer
    said = _said(lab.once(_eyes), exam.inputs(tokenizer, [_naming(question) for question in asked]))
    surnames = [tokenizer.decode([token]).strip() for token in said.tolist()]
    steps = [
        replace(question, text=f"{exam.NAMING} {surname}. " + question.text.replace("{SUBJECT}", surname))
        for question, surname in zip(asked, surnames, strict=True)
    ]
    return _right(lab.once(_eyes), steps)


# ── patches ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _image(model: Model, ids: Tensor) -> Tensor:
    """Columns of each prompt's image tokens: [prompt, 9]."""
    (token,) = model.tokenizer(exam.IMAGE, add_special_tokens=False)["input_ids"]
    return (ids == token).nonzero()[:, 1].reshape(len(ids), exam.IMAGE_TOKENS)


def _at(x: Tensor, columns: Tensor) -> Tensor:
    return x[torch.arange(len(x))[:, None], columns]


def _patched(lab: Lab, layer: int, wrong: bool) -> np.ndarray:
    """Answers by picture with the states that the name has before `layer` at the picture's last tokens.

    `wrong`: the states that somebody else's name has, in another prompt.
    """
    asked = lab.once(_judged)
    by_picture, by_name = (exam.inputs(lab.model.tokenizer, some) for some in (asked, _by_name(asked)))
    image = _image(lab.once(_eyes), by_picture["input_ids"])
    columns = image[:, :1] + torch.arange(NAME)  # where the picture begins, the name does
    states = _at(lab.once(_eyes).run(by_name, record=f"resid_pre.{layer}")[f"resid_pre.{layer}"], columns)
    if wrong:
        subjects = sorted({question.subject for question in asked})
        first = {question.subject: row for row, question in enumerate(asked)}
        other = [first[subjects[(subjects.index(q.subject) + 1) % len(subjects)]] for q in asked]
        states = states[other]
    do = pc.patch(f"resid_pre.{layer}", states, pos=image[:, -NAME:])
    return _right(lab.once(_eyes), asked, do=(do,))


def _plain(lab: Lab) -> np.ndarray:
    return _right(lab.once(_eyes), lab.once(_judged))


def _gap(lab: Lab) -> float:
    """Between by picture and by name, which is 1 of the questions that are judged."""
    return max(1 - float(lab.once(_plain).mean()), 1e-9)


def _recovered(lab: Lab, layer: int, wrong: bool) -> np.ndarray:
    return (_patched(lab, layer, wrong).astype(float) - lab.once(_plain)) / _gap(lab)


def _back_patched(lab: Lab) -> dict[tuple[int, int], np.ndarray]:
    """Whether each answer is right, with the picture's states after a late layer written before an early one."""
    asked = lab.once(_judged)
    inputs = exam.inputs(lab.model.tokenizer, asked)
    image = _image(lab.once(_eyes), inputs["input_ids"])
    run = lab.once(_eyes).run(inputs, record="resid_post.*")
    return {
        (late, early): _right(
            lab.once(_eyes),
            asked,
            do=(pc.patch(f"resid_pre.{early}", _at(run[f"resid_post.{late}"], image), pos=image),),
        ).astype(float)
        for late in range(lab.once(_eyes).n_layers)
        for early in range(late + 1)
    }


# ── probes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _probed(lab: Lab, by_picture: bool) -> list[float]:
    """How often a probe says who it is, of the stream before each layer; trained on four prompts a person of six."""
    from sklearn.linear_model import RidgeClassifier

    people = sorted({question.subject for question in lab.once(_asked)})
    states: list[list[Tensor]] = [[] for _ in range(lab.once(_eyes).n_layers)]
    for draw in range(6):
        asked = [Question(f"{'The ' * (draw % 3)}{{SUBJECT}} is", one, one.split()[-1], by_picture) for one in people]
        inputs = exam.inputs(lab.model.tokenizer, asked, seed=f"{lab.seed}/{draw}")
        run = lab.once(_eyes).run(inputs, record="resid_pre.*")
        last = (exam.IMAGE_TOKENS if by_picture else NAME) + draw % 3
        for layer, found in enumerate(states):
            found.append(run[f"resid_pre.{layer}"][:, last])
    labels = np.tile(np.arange(len(people)), 4), np.tile(np.arange(len(people)), 2)
    right = []
    for found in states:
        train, test = (torch.cat(some).double().numpy() for some in (found[:4], found[4:]))
        scale = train.std()
        right.append(float(RidgeClassifier(alpha=0.1).fit(train / scale, labels[0]).score(test / scale, labels[1])))
    return right
