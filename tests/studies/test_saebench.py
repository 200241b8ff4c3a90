"""The study end to end: it holds on planted features and on tales, and no finding of it where nothing was learned."""

import pytest
import torch

from patchclamp import studies
from patchclamp.dictionaries import Dictionary
from patchclamp.studies.evaluation.saebench import COMMON, RARE, TREE, _all, _reordered, study


@pytest.mark.slow
def test_every_claim_holds(tmp_path):
    verdict = studies.run("saebench", out=tmp_path)
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []
    assert len(verdict.figures) == 1 and (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_no_finding_holds_where_nothing_was_learned_and_all_identities_do():
    verdict = studies.run("saebench", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}


def test_the_worlds_share_their_features_and_have_parents_with_children():
    assert torch.equal(RARE.truth().directions, COMMON.truth().directions)
    assert len(TREE.truth().labelled("parent")) == 4 and TREE.features == 24
    assert study.name == "saebench" and len(study.claims) == 13


def test_what_is_reordered_is_the_same_dictionary_or_another():
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, 128, 64, generator=generator)
    one = Dictionary(encoder, torch.zeros(128), decoder, torch.zeros(64), threshold=1.0)
    x = torch.randn(10, 64, generator=generator)
    order = torch.randperm(128, generator=generator)
    assert torch.allclose(_reordered(one, order, True)(x), one(x), atol=1e-4)
    assert not torch.allclose(_reordered(one, order, False)(x), one(x), atol=1.0)


def test_every_measure_is_among_the_scores_that_order_must_not_change():
    from patchclamp.dictionaries import BatchTopK
    from patchclamp.evaluation import untrained

    one = untrained(BatchTopK(k=4), RARE.sample(500).activations, width=128)
    scores = _all(one)
    assert len(scores) > 60 and all(isinstance(score, float) for score in scores)
