"""The study's identities and its hand-written network are quick; the findings on text take longer."""

import pytest

from patchclamp import studies
from patchclamp.studies.lab import open_lab
from patchclamp.studies.patching.self_repair import BACKUP, MAIN, _hand_written, _planted, _prompts


@pytest.fixture(scope="module")
def lab():
    return open_lab("planted-circuit:induction", model=None, seed=0, full=False, out=None)[0]


def test_the_backup_speaks_only_when_the_main_head_is_silent(lab):
    tokens, letters = _prompts(lab)
    model = _hand_written(lab, False)
    assert (model.run(tokens).logits[:, -1].argmax(-1) == letters).all()
    found = _planted(lab)
    assert found.gap < 1e-5
    assert found.repairers().component.values[0] == "z.1.0"
    assert float(found.repairers()[0] / -found.own.mean()) == pytest.approx(BACKUP / MAIN, rel=0.05)
    assert found.erasers(1).neuron.values[0] == "mlp_post.1.7"


@pytest.mark.slow
def test_claims_on_tales():
    verdict = studies.run("self-repair")
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
    by_start = {claim.claim[:30]: claim for claim in verdict.claims}
    for start in ("of the direct effect, the last", "the backup head's share of wha", "the neuron that erases comes f"):
        assert by_start[start].holds


@pytest.mark.slow
def test_no_finding_holds_on_random_weights_and_all_identities_do():
    verdict = studies.run("self-repair", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
