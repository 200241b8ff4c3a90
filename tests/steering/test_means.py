"""Directions from averages: means are means of the right tokens, and constants do not matter where they should not."""

import pytest
import torch

import patchclamp as pc
from patchclamp.steering import DirectionError, activations, difference, differences, mean, mean_centred, principal
from patchclamp.steering.means import FEWEST
from tiny import build


@pytest.fixture(scope="module")
def model():
    return pc.wrap(build("llama"))


def prompts(seed, n=12, shortest=3, longest=6):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(1, 20, (length,), generator=generator).tolist() for length in lengths]


def test_rows_are_the_real_tokens_whatever_the_batch(model):
    some = prompts(0)
    rows = activations(model, some, "resid_post.*", batch=5)
    assert [str(site) for site in rows] == [f"resid_post.{layer}" for layer in range(model.n_layers)]
    one_by_one = torch.cat([model.run([ids], record="resid_post.1")["resid_post.1"][0] for ids in some])
    (found,) = [values for site, values in rows.items() if site.layer == 1]
    assert torch.allclose(found, one_by_one, atol=1e-5)
    last = activations(model, some, "resid_post.1", pos=-1, batch=5)
    own = torch.stack([model.run([ids], record="resid_post.1")["resid_post.1"][0, -1] for ids in some])
    assert torch.allclose(next(iter(last.values())), own, atol=1e-5)


def test_each_mean_is_its_definition(model):
    a, b = prompts(1), prompts(2)
    rows = [next(iter(activations(model, some, "resid_post.0").values())).mean(0) for some in (a, b)]
    assert torch.allclose(mean(model, a, site="resid_post.0").vector, rows[0])
    for fit in (
        mean_centred(model, a, background=b, site="resid_post.0"),
        difference(model, a, b, site="resid_post.0"),
    ):
        assert torch.allclose(fit.vector, rows[0] - rows[1], atol=1e-6)
    found = differences(model, a, b, sites="resid_post.*")
    assert len(found) == model.n_layers
    assert torch.allclose(found[pc.Site("resid_post", 0)].vector, rows[0] - rows[1], atol=1e-6)


def test_the_principal_component_finds_what_pairs_share(model, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    low = torch.randn(200, 16, generator=generator)
    high = low + torch.linspace(0.5, 3, 200)[:, None] * truth + 0.05 * torch.randn(200, 16, generator=generator)
    sides = {"high": high, "low": low}
    monkeypatch.setattr(
        "patchclamp.steering.means.activations",
        lambda model, which, site, pos: {pc.Site("resid_post", 0): sides[which]},
    )
    found = principal(model, "high", "low", site="resid_post.0")
    assert found.vector @ truth == pytest.approx(1.75, abs=0.02) and found.unit().vector @ truth > 0.999


def test_too_few_rows_and_unpaired_sides_are_refused(model):
    with pytest.raises(DirectionError, match=f"fewer than {FEWEST}"):
        mean(model, prompts(0, n=3, longest=4)[:1], site="resid_post.0", pos=-1)
    with pytest.raises(DirectionError, match="as many rows"):
        principal(model, prompts(0, n=12), prompts(1, n=11), site="resid_post.0")
    with pytest.raises(DirectionError, match="pattern names 3"):
        difference(model, prompts(0), prompts(1), site="resid_post.*")
    with pytest.raises(DirectionError, match="tensor by prompt"):
        activations(model, prompts(0), "resid_post.0", pos=torch.zeros(12, 1))
