"""Lenses end at the model's own logits in every architecture; a tuned one beats its controls on other tokens."""

import pytest
import torch

import patchclamp as pc
from patchclamp.patching import compare_lenses, logit_lens, tuned_lens
from patchclamp.sites import SiteError
from patching import cases


def tokens(seed: int, n: int = 16) -> torch.Tensor:
    return torch.randint(3, 90, (n, 10), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "granite", "cohere", "falcon", "olmo2"])
def test_the_last_layer_s_lens_is_the_model(name):
    model, ids = cases.model(name), tokens(0, 2)
    read = logit_lens(model, ids)
    assert read.shape[0] == model.n_layers
    assert torch.allclose(read[-1], model.run(ids).logits, atol=1e-4)
    assert not torch.allclose(read[0], read[-1], atol=1e-2)


def test_a_tuned_lens_beats_the_logit_lens_and_the_translators_of_other_layers():
    name = "planted-circuit:duplicate-removal"
    model, truth = pc.load(f"organism:{name}"), pc.organisms.truth(name)
    lens = tuned_lens(model, truth.sample(64, 0)[0], steps=150, learning_rate=1e-2, seed=0)
    read = compare_lenses(model, truth.sample(32, 1)[0], lens).sel(measure="kl")
    assert lens.losses[-1] < 0.5 * lens.losses[0]
    assert (read.sel(lens="tuned") < read.sel(lens="logit")).all()
    assert (read.sel(lens="tuned") < read.sel(lens="shuffled")).all()


def test_no_step_is_the_logit_lens_and_a_seed_repeats():
    model = cases.model("gpt2")
    ids = tokens(1, 4)
    untrained = tuned_lens(model, ids, steps=0)
    assert torch.equal(logit_lens(model, ids, lens=untrained), logit_lens(model, ids))
    one, two = (tuned_lens(model, ids, steps=3, seed=5) for _ in range(2))
    assert torch.equal(one.translators[0][0], two.translators[0][0]) and one.losses == two.losses


def test_padding_is_not_read():
    model, ids = cases.model("llama"), tokens(1, 4)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 5:] = False
    assert compare_lenses(model, ids, tuned_lens(model, ids, steps=0), attention_mask=mask).attrs["tokens"] == 35


def test_errors_say_what_was_meant():
    with pytest.raises(SiteError, match="unembedding"):
        logit_lens(cases.model("vit"), torch.zeros(1, 3, 16, 16))
    lens = tuned_lens(cases.model("gpt2"), tokens(1, 2), steps=0)
    with pytest.raises(LookupError, match="0, 1"):
        lens.translate(torch.zeros(1, 32), 2)
