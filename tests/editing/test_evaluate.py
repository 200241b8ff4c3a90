"""Judges agree with what the model says; on `tales` ROME and MEMIT write facts, and what is beside them stays."""

import re

import pytest
import torch

import patchclamp as pc
from patchclamp.editing import Edit, Joint, Rewrite, Search, drawn, evaluate, memit, prefixes, rome, second_moment
from patchclamp.editing.evaluate import ask, word_entropy
from patchclamp.editing.rewrite import Question
from patchclamp.organisms.tales import world
from patchclamp.studies.editing._tales_facts import RELATIONS, follows

FACTS = [
    Rewrite("anna", ("{SUBJECT} was born in",), old="paris", new="rome", paraphrases=("the city of {SUBJECT} is",)),
    Rewrite("bela", ("{SUBJECT} lives in", "{SUBJECT} was born in"), old="oslo", new="bern paris"),
]


def test_the_three_judges_are_what_they_say(tiny_model):
    model = tiny_model("llama")
    with torch.no_grad():  # it says nothing but the tokenizer's words
        model.hf.lm_head.weight[[0, 1, *range(len(model.tokenizer), 99)]] = 0
    prompts = ["anna was born in", "bela lives in"]
    spoken = [model.generate(p, max_new_tokens=2).new_text for p in prompts]
    words = [text for text in spoken if text]
    questions = [Question("efficacy", p, w, "oslo") for p, w in zip(prompts, words, strict=False)]
    answers = ask(model, questions)
    assert bool(answers.generated.all()) and bool(answers.forced.all())
    other = ask(model, [Question("efficacy", q.prompt, "oslo", q.wanted) for q in questions])
    assert torch.allclose(other.margin, -answers.margin, atol=1e-5)
    assert torch.equal(other.prefers, other.margin > 0) and not (other.prefers & answers.prefers).any()
    ids = model.tokens(["anna was born in rome bern"]).ids
    expected = model.run(ids).logits[0].log_softmax(-1)
    both = sum(float(expected[i - 1, ids[0, i]]) for i in (4, 5))
    alone = ask(model, [Question("efficacy", "anna was born in", "rome bern", "rome")])
    assert abs(float(alone.margin) - (both - float(expected[3, ids[0, 4]]))) < 1e-4


def test_an_edit_of_nothing_changes_nothing_and_each_edit_is_asked_about_its_own_fact(tiny_model):
    model = tiny_model("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    nothing = Edit.dense({name: torch.zeros(32, 56)})
    report = evaluate(model, FACTS, nothing, write=4)
    assert [m.n for m in report.measures.values()] == [3, 1]
    assert all(torch.equal(m.before.margin, m.after.margin) for m in report.measures.values())
    assert report.fluency is not None and report.fluency[0] == report.fluency[1]
    generator = torch.Generator().manual_seed(0)
    some = Edit.dense({name: torch.randn(32, 56, generator=generator)})
    each = evaluate(model, FACTS, [nothing, some])
    margins, owner = each["efficacy"], each.owners["efficacy"]
    same = torch.isclose(margins.before.margin, margins.after.margin, atol=1e-5)
    assert bool(same[owner == 0].all()) and not bool(same[owner == 1].any())
    assert len(each.took) == 2 and [row["measure"] for row in each.rows()] == ["efficacy", "paraphrase"]
    with pytest.raises(ValueError, match="one for each"):
        evaluate(model, FACTS, [nothing])
    with pytest.raises(KeyError, match="nothing was asked about 'two hops'"):
        report["two hops"]


def test_words_that_repeat_have_no_entropy():
    assert word_entropy("a a a a a") == 0 < word_entropy("a b a b c") < word_entropy("a b c d e")


# ── facts of tales ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tales():
    return pc.load("organism:tales")


def facts_of(n, seed):
    """Two phrasings are edited; the others, one kept out of training among them, are paraphrases."""
    return drawn(world.fact_table(), n, seed, relations=RELATIONS, follows=follows, prompts=2)


def texts(without=()):
    """The facts of the world in other words, and some of everything, but what speaks of some subjects."""
    documents = pc.organisms.truth("tales").documents
    kinds = (("life", 300), ("fact", 300), ("unknown", 150), (None, 100))
    every = [d.text for kind, n in kinds for d in documents(n, seed=5, kind=kind)]
    return [text for text in every if not any(fact.subject in text for fact in without)]


def bar(report):
    for judge in ("prefers", "forced", "generated"):
        assert report["efficacy"].share(judge) >= 0.95
        assert report["efficacy"].share(judge, "before") == 0
        assert report["paraphrase"].share(judge) >= 0.8
        neighbours = report["neighbourhood"]
        assert neighbours.share(judge, "before") - neighbours.share(judge) <= 0.05


SEARCH = Search(enough=0.25)  # as much as the new answer needs: more spills over to neighbours


def test_rome_writes_facts_of_tales(tales):
    facts = facts_of(6, seed=1)
    edits = rome(tales, facts, 0, moment=second_moment(tales, texts(), 0), search=SEARCH)
    report = evaluate(tales, facts, edits)
    assert report["efficacy"].share("generated") == 1
    assert report["paraphrase"].share("generated") >= 0.8


def test_memit_writes_ten_facts_at_once(tales):
    facts = facts_of(10, seed=2)
    moment = second_moment(tales, texts(without=facts), 0)
    report = evaluate(tales, facts, memit(tales, facts, [0], moments={0: moment}, weight=30.0, search=SEARCH))
    assert report["efficacy"].share("generated") >= 0.95
    assert report["paraphrase"].share("generated") >= 0.8
    assert report["neighbourhood"].share("generated") >= 0.7


@pytest.mark.slow
def test_rome_writes_forty_facts_of_tales_and_leaves_their_neighbours(tales):
    facts = facts_of(40, seed=1)
    edits = rome(tales, facts, 0, moment=second_moment(tales, texts(), 0), search=SEARCH)
    report = evaluate(tales, facts, edits)
    bar(report)
    assert report["two hops"].share("generated") >= 0.5  # what follows from a home follows from the new one


@pytest.mark.slow
def test_rome_writes_a_hundred_facts_of_tales(tales):
    """Their neighbours are the few subjects left over, and suffer: docs/editing.md says how much."""
    facts = facts_of(100, seed=2)
    edits = rome(tales, facts, 0, moment=second_moment(tales, texts(), 0), search=Search(enough=0.1))
    report = evaluate(tales, facts, edits, write=12)
    assert report["efficacy"].share("generated") >= 0.95
    assert report["paraphrase"].share("generated") >= 0.8
    before, after = report.fluency
    assert after > 0.9 * before


@pytest.mark.slow
def test_memit_writes_a_hundred_facts_about_fifty_people_at_once(tales):
    """Half of the questions about neighbours are in the neutral text; of the others it says the answer otherwise."""
    facts = drawn(world.fact_table(), 100, 34, relations=RELATIONS, prompts=2, each=2)
    asked = tuple(sorted({prompt for fact in facts for prompt, _ in fact.neighbours})[::2])
    sentences = {s.strip() for text in texts(without=facts) for s in re.findall(r"[^.]+\.", text)}
    neutral = sorted(s for s in sentences if not s.startswith(asked))
    moments = {0: second_moment(tales, neutral, 0)}
    edit = memit(
        tales, facts, [0], moments=moments, weight=300.0, prefixes=prefixes(tales, 3), joint=Joint(), neutral=neutral
    )
    bar(evaluate(tales, facts, edit))


@pytest.mark.slow
@pytest.mark.xfail(reason="of 100 people only 8 stay as they are, whose names are like the others", strict=True)
def test_memit_as_published_writes_one_fact_each_of_a_hundred_subjects(tales):
    facts = facts_of(100, seed=2)
    moment = second_moment(tales, texts(without=facts), 0)
    bar(evaluate(tales, facts, memit(tales, facts, [0], moments={0: moment}, weight=100.0, search=SEARCH)))


def test_rewrites_are_asked_in_full():
    one = Rewrite(
        "anna",
        ("{SUBJECT} was born in",),
        "paris",
        "rome",
        paraphrases=("the city of {SUBJECT} is",),
        neighbours=(("bela was born in", "paris"),),
        about=(("anna is a", "carl"),),
        follows=(("anna lives in", "oslo", "bern"),),
    )
    assert [(q.kind, q.prompt, q.wanted, q.rival) for q in one.questions()] == [
        ("efficacy", "anna was born in", "rome", "paris"),
        ("paraphrase", "the city of anna is", "rome", "paris"),
        ("neighbourhood", "bela was born in", "paris", "rome"),
        ("subject", "anna is a", "carl", "rome"),
        ("two hops", "anna lives in", "bern", "oslo"),
    ]
