"""End-to-end finetuning: the output comes nearer on prompts held out, by gradients through the layers above."""

import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.dictionaries import Dictionary, end_to_end
from patchclamp.dictionaries.end_to_end import spliced

IDS = torch.randint(3, 99, (24, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return pc.wrap(tiny.build("llama"))


def sae(seed: int = 0) -> Dictionary:
    rows = torch.nn.functional.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return Dictionary(rows, torch.zeros(64), rows, torch.zeros(32), select="topk", k=8)


@pytest.mark.parametrize(("site", "options"), [("resid_post.0", {"downstream": 1.0}), (("mlp_in.1", "mlp_out.1"), {})])
def test_the_output_comes_nearer(model, site, options):
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    start = sae()
    found = end_to_end(
        start, model, site, IDS, steps=40, batch=8, learning_rate=3e-3, local=0.1, progress=False, **options
    )
    assert found.after.kl_changed < 0.9 * found.before.kl_changed
    assert found.losses[-1]["kl"] < found.losses[0]["kl"] and len(found.losses) == 40
    assert (found.losses[0]["downstream"] > 0) == bool(options)
    assert all(torch.equal(before[name], p) and p.requires_grad for name, p in model.hf.named_parameters())
    assert torch.equal(start.W_enc, sae().W_enc) and not found.dictionary.W_enc.requires_grad
    torch.testing.assert_close(found.dictionary.W_dec.norm(dim=1), torch.ones(64))


def test_the_same_seed_gives_the_same_bits(model):
    one, other = (
        end_to_end(sae(), model, "resid_post.1", IDS, steps=3, seed=1, progress=False).dictionary for _ in range(2)
    )
    assert torch.equal(one.W_enc, other.W_enc)


def test_what_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match="one layer"):
        spliced(sae(), ("mlp_in.0", "mlp_out.1"))
    with pytest.raises(ValueError, match="nothing to learn"):
        end_to_end(sae(), model, "resid_post.1", IDS[:1], progress=False)
    with pytest.raises(ValueError, match="stands behind"):
        end_to_end(sae(), model, "resid_post.2", IDS, downstream=1.0, progress=False)
