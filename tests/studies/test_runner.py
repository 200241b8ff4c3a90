"""A study run end to end on a small network: verdicts, premises, refusals, files."""

import json

import pytest
import torch

import patchclamp as pc
from patchclamp import studies
from patchclamp.studies import Measured, NotApplicable, Study
from patchclamp.studies.behaviour import answers
from patchclamp.studies.verdict import OWN
from tiny import build


def small():
    study = Study(name="small", paper="P", seed="s.txt", organism="compiled:hand-induction")

    @study.finding("it does induction", at_least=0.9, control="corrupted prompts")
    def does(lab):
        return answers(lab)

    @study.finding("ten is more than one", at_least=5, control="one", given=does)
    def more(lab):
        return Measured.number(10, control=1)

    @study.finding("a circuit is known", at_least=3, control="none")
    def known(lab):
        lab.need(lab.truth.nodes, "a model whose circuit is known")
        return Measured.number(len(lab.truth.nodes) * (not lab.untrained), control=0)

    @study.identity("draws are draws", tolerance=0)
    def draws(lab):
        return Measured.gap(torch.rand(2, generator=lab.generator), torch.rand(2, generator=lab.at("draws").generator))

    return study, {"does": does, "more": more, "known": known, "draws": draws}


def test_on_its_organism_everything_holds():
    verdict = studies.run(small()[0])
    assert [claim.holds for claim in verdict.claims] == [True, True, True, True] and verdict.holds
    assert verdict.organism == "compiled:hand-induction" and verdict.seconds > 0


def test_on_random_weights_findings_fail_also_by_their_premise_and_identities_hold():
    verdict = studies.run(small()[0], model="random")
    assert [claim.holds for claim in verdict.claims] == [False, False, False, True] and not verdict.holds
    more = verdict.claims[1]
    assert more.measured == 10 and "premise" in more.note  # what it measured is told all the same


def test_on_another_model_claims_that_cannot_be_asked_stay_open():
    study = Study(name="open", paper="P", seed="s.txt", organism="compiled:hand-induction")
    study.claims = small()[0].claims[2:]
    verdict = studies.run(study, model=pc.wrap(build("gpt2"), name="mine"))
    assert [claim.holds for claim in verdict.claims] == [None, True] and verdict.holds
    assert verdict.organism == "mine" and "circuit is known" in verdict.claims[0].note


def test_on_another_model_what_is_given_an_open_claim_is_open_too_and_is_not_measured():
    study = Study(name="open", paper="P", seed="s.txt", organism="compiled:hand-induction")

    @study.finding("a circuit is known", at_least=3, control="none")
    def known(lab):
        lab.need(lab.truth.nodes, "a model whose circuit is known")
        return Measured.number(3, control=0)

    @study.finding("ten is more than one", at_least=5, control="one", given=known)
    def more(lab):
        assert lab.truth.nodes, "not asked"
        return Measured.number(10, control=1)

    @study.identity("a width is a width", tolerance=0)
    def width(lab):
        lab.used.add("on a whim")
        return Measured.gap(lab.model.d_model, lab.model.d_model)

    verdict = studies.run(study, model=pc.wrap(build("gpt2"), name="mine"))
    assert [claim.holds for claim in verdict.claims] == [None, None, True]
    assert verdict.claims[2].claim.endswith("(within 0; on a whim)")
    assert verdict.claims[1].note == verdict.claims[0].note
    assert studies.run(study).holds


def test_on_another_model_a_method_that_refuses_it_leaves_its_claim_open_and_on_the_organism_it_is_a_mistake():
    study = Study(name="refusing", paper="P", seed="s.txt", organism="compiled:hand-induction")

    @study.finding("it has a graph", at_least=3, control="none")
    def graph(lab):
        raise ValueError("the heads' outputs do not sum")

    @study.identity("a width is a width", tolerance=0)
    def width(lab):
        return Measured.gap(lab.model.d_model, lab.model.d_model)

    verdict = studies.run(study, model=pc.wrap(build("gpt2"), name="mine"))
    assert [claim.holds for claim in verdict.claims] == [None, True]
    assert verdict.claims[0].note == "gives no measurement (the heads' outputs do not sum)"
    with pytest.raises(ValueError, match="do not sum"):
        studies.run(study)


def test_a_claim_that_never_asked_for_the_model_says_so():
    study = Study(name="own", paper="P", seed="s.txt", organism="compiled:hand-induction")

    @study.identity("one is one", tolerance=0)
    def one(lab):
        return Measured.gap(1, 1)

    @study.identity("a width is a width", tolerance=0)
    def width(lab):
        return Measured.gap(lab.model.d_model, lab.model.d_model)

    mine = pc.wrap(build("gpt2"), name="mine")
    verdict = studies.run(study, model=mine)
    assert OWN in verdict.claims[0].claim and OWN not in verdict.claims[1].claim and "1 of 2 claims are" in verdict.said
    assert all(OWN not in claim.claim for claim in studies.run(study).claims)
    study.claims = study.claims[:1]
    assert studies.run(study, model=mine).said.startswith("nothing was measured on this model")


def test_where_no_claim_can_be_asked_the_study_refuses_and_says_what_it_needs():
    study = Study(name="refused", paper="P", seed="s.txt", organism="compiled:hand-induction")
    study.claims = [small()[0].claims[2]]
    with pytest.raises(NotApplicable, match="refused cannot be run on mine: it needs a model whose circuit is known"):
        studies.run(study, model=pc.wrap(build("gpt2"), name="mine"))


def test_a_study_whose_own_organism_lacks_what_it_needs_is_a_mistake():
    study = Study(name="wrong", paper="P", seed="s.txt", organism="compiled:hand-induction")

    @study.finding("it talks", at_least=1, control="none")
    def talks(lab):
        lab.need(lab.model.tokenizer, "a tokenizer")

    with pytest.raises(NotApplicable, match="needs a tokenizer"):
        studies.run(study)
    assert studies.run(study, model="random").claims[0].holds is False


def test_the_same_seed_gives_the_same_verdict_and_with_out_files_are_written(tmp_path):
    study, _ = small()

    @study.figure("one bar")
    def bar(lab):
        return pc.views.bars(["a"], [1.0])

    verdict = studies.run(study, seed=3, out=tmp_path)
    assert studies.run(study, seed=3).claims == verdict.claims
    assert json.loads((tmp_path / "verdict.json").read_text()) == verdict.to_dict()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "one bar" in page and len(verdict.figures) == 1
    assert not studies.run(study, seed=3).figures


def test_a_figure_that_cannot_be_drawn_of_your_model_is_left_out_and_said(tmp_path):
    study, _ = small()

    @study.figure("words")
    def words(lab):
        lab.need(lab.model.tokenizer, "a tokenizer")

    studies.run(study, model=pc.wrap(build("gpt2"), name="mine"), out=tmp_path)
    assert "words: not drawn, it needs a tokenizer" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(NotApplicable, match="a tokenizer"):
        studies.run(study, out=tmp_path)


def test_a_study_that_claims_nothing_is_refused():
    with pytest.raises(ValueError, match="claims nothing"):
        studies.run(Study(name="empty", paper="P", seed="s.txt", organism="tales"))
