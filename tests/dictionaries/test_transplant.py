"""Transplanted latents: with a crosscoder that explains all, all of them make the tuned model's output."""

import copy

import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.dictionaries import Dictionary, transplant

IDS = torch.randint(3, 99, (4, 9), generator=torch.Generator().manual_seed(0))
SITE = "resid_post.0"


def models():
    base = tiny.build("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        direction = torch.zeros(32)
        direction[:4] = 1.0
        tuned.model.layers[0].mlp.down_proj.weight += 3 * torch.outer(direction, torch.ones(56)) / 56
    return pc.wrap(base), pc.wrap(tuned)


def exact() -> Dictionary:
    """Latents along each axis of each model, both ways, which explain everything; the first 64 are the base's."""
    axes = torch.cat([torch.eye(64), -torch.eye(64)])
    order = torch.cat([torch.arange(32), torch.arange(64, 96), torch.arange(32, 64), torch.arange(96, 128)])
    rows = axes[order]
    return Dictionary(rows, torch.zeros(128), rows, torch.zeros(64), shape_in=(2, 32), shape_out=(2, 32))


def test_all_latents_carry_everything_and_those_that_differ_are_enough():
    base, tuned = models()
    which = [*range(64, 68), *range(96, 100), *range(4), *range(32, 36)]  # the four axes that tuning wrote to
    found = transplant(base, tuned, exact(), SITE, IDS, which, seed=1)
    assert found.all_recovered == pytest.approx(1, abs=1e-3) and found.recovered == pytest.approx(1, abs=1e-3)
    assert float(found.none[found.real].mean()) > 0 and len(found.random_recovered) == 5
    assert found.by_prompt("random").shape == (5, 4) and max(found.random_recovered) < 0.5


def test_where_says_which_positions_count():
    base, tuned = models()
    where = torch.zeros_like(IDS, dtype=torch.bool)
    where[:, 2:4] = True
    found = transplant(base, tuned, exact(), SITE, IDS, range(64, 68), where=where, draws=1)
    assert int(found.real.sum()) == 8
    torch.testing.assert_close(found.by_prompt("none"), found.none[:, 2:4].mean(1))


def test_the_same_model_twice_has_nothing_to_recover():
    base, _ = models()
    assert torch.tensor(transplant(base, base, exact(), SITE, IDS, [64, 65], draws=1).recovered).isnan()


def test_too_few_others_are_refused():
    base, tuned = models()
    with pytest.raises(ValueError, match="others to compare"):
        transplant(base, tuned, exact(), SITE, IDS, range(128))
