"""What a small model and `tales` have and have not; on random weights no finding holds."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.editing import _knowing as knowing
from patchclamp.studies.lab import Lab


def test_prompts_say_relation_and_name_and_languages_share_only_names():
    names, relations = torch.cartesian_prod(torch.arange(knowing.NAMES), torch.arange(knowing.RELATIONS)).T
    first, second = (knowing.prompts(names, relations, language) for language in (0, 1))
    assert len(set(map(tuple, first.tolist()))) == knowing.NAMES * knowing.RELATIONS
    assert set(first.flatten().tolist()) & set(second.flatten().tolist()) == {0, *first[:, 3].tolist()}
    one, other = (first[relations == r, 1:3].unique(dim=0) for r in (4, 5))
    assert one.shape == (1, 2) and (one == other).tolist() == [[True, False]]


def test_related_relations_have_the_same_answers_and_others_have_none_in_common():
    answers = [set(column.tolist()) for column in knowing.facts(seed=3).T]
    for one in range(knowing.RELATIONS):
        for other in range(one):
            assert bool(answers[one] & answers[other]) == (one // 2 == other // 2)
    assert not torch.equal(knowing.facts(3), knowing.facts(4)) and torch.equal(knowing.facts(3), knowing.facts(3))


def test_names_that_find_choose_and_judge_are_others():
    assert sorted(torch.cat(knowing.parts(5)).tolist()) == list(range(knowing.NAMES))


def test_an_untrained_model_knows_nothing_and_selectivity_is_of_every_neuron():
    model = knowing.trained(Lab(None, None), steps=0)  # type: ignore[arg-type]
    names = torch.arange(8)
    assert knowing.right(model, 0, names).shape == (8, knowing.RELATIONS)
    assert float(knowing.right(model, 0, names).mean()) < 0.1
    found = knowing.selectivity(model, names)
    assert len(found) == knowing.RELATIONS and found[0].of_site["mlp_post.0"].shape == (256,)


@pytest.mark.slow
def test_neurons_of_a_small_model_are_of_relations_and_those_of_tales_of_one():
    verdict = studies.run("relation-neurons")
    failed = [claim.claim for claim in verdict.claims if not claim.holds]
    assert len(failed) == 1 and failed[0].startswith("in `tales` most do")


@pytest.mark.slow
def test_no_finding_holds_on_random_weights_and_the_identity_does():
    verdict = studies.run("relation-neurons", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
