"""The study of supervised dictionaries: its prompts and names quickly, the whole on `tales` and on random weights."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.dictionaries import principled_sae_evals as evals
from patchclamp.studies.lab import open_lab


@pytest.fixture(scope="module")
def lab():
    lab = open_lab("tales", model=None, seed=0, full=False, out=None)[0]
    sizes = dict(evals.SIZES)
    evals.SIZES.update(fit=400, test=40)
    yield lab
    evals.SIZES.update(sizes)


def test_attributes_are_those_of_the_text(lab):
    prompts = lab.once(evals._prompts, "test")
    for row, text in enumerate(prompts.task.clean_text[:10]):
        names = [lab.model.tokenizer.decode([int(prompts.token(role)[row])]).strip() for role in ("IO", "S")]
        first, second = names if prompts.values["order"][row] == 0 else names[::-1]
        assert text.startswith(f"When {first} and {second} went") and f", {names[1]} gave" in text


def test_other_names_are_neither_of_the_two(lab):
    prompts, new = lab.once(evals._prompts, "test"), lab.once(evals._other_names)
    assert not bool(((new == prompts.values["IO"]) | (new == prompts.values["S"])).any())
    tokens = evals._named(prompts.task, torch.arange(40), prompts.names[new])
    assert ((tokens != prompts.task.clean).sum(1) == 1).all()


def test_the_two_fits_agree_where_names_are_balanced(lab):
    measured = evals.fits_agree(lab)
    assert measured.value < 1e-4 and measured.control > 1e-3


@pytest.mark.slow
def test_every_claim_holds_on_tales_and_no_finding_on_random_weights():
    verdict = studies.run("principled-sae-evals")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []
    verdict = studies.run("principled-sae-evals", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
