"""A probe on latents finds the latent of a planted feature, and writes its direction."""

import torch

from patchclamp.dictionaries import Dictionary
from patchclamp.organisms import planted
from patchclamp.probes import OnLatents


def true_dictionary(world):
    directions = world.truth().directions[0].float()
    return Dictionary(directions, torch.zeros(len(directions)), directions, torch.zeros(world.width), threshold=0.3)


def test_the_latent_of_the_feature_is_chosen():
    world = planted.superposition(features=48, width=32, active=3)
    batch, fresh = world.sample(800, seed=0), world.sample(400, seed=1)
    labels = batch.fires[:, :5].float()
    for binary in (False, True):
        probe = OnLatents(true_dictionary(world), k=1, binary=binary).fit(batch.activations, labels)
        assert probe.latents_[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert probe.score(fresh.activations, fresh.fires[:, :5].float()).min() > 0.9
    one = OnLatents(true_dictionary(world), k=1).fit(batch.activations, labels[:, 2], site="resid_post.3")
    vector, site = one.as_direction()
    assert site == "resid_post.3"
    assert torch.cosine_similarity(vector.float(), world.truth().directions[0, 2].float(), dim=0) > 0.999
