import numpy as np
import pytest
import torch

from evaluation.worlds import features, truth
from patchclamp.dictionaries import Dictionary
from patchclamp.evaluation import Attribute, exchange, identity, rotation, zero
from patchclamp.evaluation.disentanglement import by_model, linear


def test_the_dictionary_of_truth_separates_and_so_does_a_rotation():
    data = features().only(range(3))
    attributes = linear(data)
    assert exchange(truth(features()), data.x, attributes)["score"].min() > 0.97
    assert rotation(data.x, attributes)["score"].min() > 0.9
    assert exchange(identity(16), data.x, attributes)["score"].mean() < 0.97


def test_one_latent_for_everything_can_only_exchange_all_or_nothing():
    data = features().only(range(3))
    direction = data.directions.sum(0, keepdim=True)
    joined = Dictionary(direction, torch.zeros(1), direction, torch.zeros(16))
    found = exchange(joined, data.x, linear(data), error=True)
    assert np.all(found["score"] < 0.75)


def test_what_explains_nothing_exchanges_nothing():
    data = features().only(range(3))
    found = exchange(zero(16), data.x, linear(data), error=True)
    assert found["cause"].max() < 0.05 and found["isolation"].min() > 0.95


def test_an_attribute_with_one_value_cannot_be_exchanged():
    data = features(200).only([0, 1])
    attributes = linear(data)
    constant = Attribute("constant", torch.zeros(200, dtype=torch.long), attributes[0].read)
    with pytest.raises(ValueError, match="one value"):
        exchange(identity(16), data.x, [constant, attributes[1]])


def test_a_reader_that_asks_the_model_gives_its_own_logits(tales):
    prompts = ["The capital of France is", "The capital of Spain is"]
    choices = [tales.tokenizer.encode(word)[-1] for word in (" Paris", " Madrid")]
    run = tales.run(prompts, record="resid_post.0")
    rows = torch.arange(2)
    position = int(run.mask[0].sum()) - 2
    read = by_model(tales, "resid_post.0", prompts, [position, position], choices)
    x = run["resid_post.0"][:, position]
    assert torch.allclose(read(x, rows), run.logits[:, -1][:, choices], atol=1e-4)
    assert not torch.allclose(read(x.flip(0), rows), run.logits[:, -1][:, choices], atol=1e-2)
    held = x.clone().requires_grad_()
    assert torch.autograd.grad(read(held, rows).sum(), held)[0].abs().sum() > 0
