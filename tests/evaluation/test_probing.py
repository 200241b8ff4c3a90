import numpy as np
import pytest
import torch

from evaluation.worlds import changed, features, tree, truth
from patchclamp.evaluation import Labelled, heads, identity, main_latents, probing


def test_the_latent_of_a_feature_tells_it_without_error_and_one_unit_does_not():
    data = features()
    assert np.all(probing.accuracy(truth(data), data, ks=(1,))["accuracy@1"] == 1.0)
    assert probing.accuracy(identity(16), data, ks=(1,))["accuracy@1"].mean() < 0.9
    assert np.all(probing.full(data) > 0.99)


def test_a_feature_is_said_by_its_own_latent_alone():
    data = features()
    assert main_latents(truth(data), data) == [[i] for i in range(6)]


def test_a_feature_that_two_latents_share_is_split_over_two():
    """Each half of the tree's second child list: a parent that only its children's latents say."""
    data = tree().only([0, 4, 5])
    children = truth(data.only([1, 2]))
    assert sorted(main_latents(children, data.only([0]))[0]) == [0, 1]


def test_selection_sees_no_test_rows():
    """Thousands of noise latents, of which some tell 150 rows of random labels: not the other 150."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2000, generator=generator)
    data = Labelled(x, torch.rand(300, 4, generator=generator) < 0.5, ("a", "b", "c", "d"))
    assert abs(probing.accuracy(identity(2000), data, ks=(5,))["accuracy@5"].mean() - 0.5) < 0.07


def test_the_order_and_the_size_of_latents_do_not_matter():
    data = tree()
    one = truth(data)
    order = torch.randperm(one.width, generator=torch.Generator().manual_seed(1))
    for other in (changed(one, order=order), changed(one, scale=4.0)):
        mine, theirs = (probing.accuracy(d, data) for d in (one, other))
        assert all(np.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)


def test_balanced_shares_do_not_depend_on_how_rare_a_concept_is():
    holds = torch.tensor([[True]] * 5 + [[False]] * 95)
    assert heads.accuracy(torch.zeros(100, 1, dtype=torch.bool), holds) == 0.5
    assert heads.accuracy(holds, holds) == 1.0 and heads.f1(holds, holds) == 1.0
    assert heads.f1(torch.ones(100, 1, dtype=torch.bool), holds) == pytest.approx(2 / 3)


def test_a_concept_that_is_too_rare_is_named():
    data = features(200)
    rare = Labelled(data.x, torch.arange(200)[:, None] < 15, ("rare",))
    with pytest.raises(ValueError, match="rare holds in"):
        probing.full(rare)


def test_rows_of_one_document_stay_on_one_side():
    data = features(200)
    data = Labelled(data.x, data.holds, data.names, groups=torch.arange(200) // 10)
    first, second = data.halves(3)
    assert not set(first.groups.tolist()) & set(second.groups.tolist()) and len(first) == len(second) == 100


def test_shapes_that_do_not_agree_are_an_error():
    with pytest.raises(ValueError, match="one name a concept"):
        Labelled(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool), ("only one",))
