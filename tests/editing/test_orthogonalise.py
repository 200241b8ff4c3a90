"""The weight edit and the hook at run time are the same thing, to rounding; where they cannot be, it is refused."""

import pytest
import torch
import transformers

import patchclamp as pc
from patchclamp.editing import EditError, orthogonalise, untie
from patchclamp.steering import Direction
from tiny import build

IDS = torch.tensor([[5, 9, 3, 7], [2, 8, 1, 4]])


def direction(model, seed=0):
    return Direction("resid_post.1", torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_in_double_precision_the_edit_is_the_hook(family):
    model = pc.wrap(build(family).double())
    untie(model)
    d = direction(model)
    hooked = model.run(IDS % 20, do=d.ablated(model)).logits
    clean = model.run(IDS % 20).logits
    with orthogonalise(model, d).applied(model):
        edited = model.run(IDS % 20).logits
    # The norms of Llama compute in single precision whatever the model's own is.
    assert float((edited - hooked).abs().max()) < (1e-5 if family == "llama" else 1e-10)
    assert float((edited - clean).abs().max()) > 1e-3


def test_the_merged_checkpoint_never_writes_the_direction(tmp_path):
    model = pc.wrap(build("llama"))
    d = direction(model)
    folder = orthogonalise(model, d).merge(model, tmp_path / "merged")
    plain = pc.wrap(transformers.AutoModelForCausalLM.from_pretrained(folder))
    for states in plain.run(IDS, record="resid_post.*").recording.tensors.values():
        assert float(d.project(states).abs().max()) < 1e-5 * float(states.norm(dim=-1).max())


def test_tied_embeddings_and_norms_behind_the_matrices_are_refused():
    tied = pc.wrap(build("gpt2"))
    edit = orthogonalise(tied, direction(tied))
    with pytest.raises(EditError, match="untie"), edit.applied(tied):
        pass
    post = pc.wrap(build("gemma2"))
    untie(post)
    with pytest.raises(EditError, match="norm or a scale stands behind"):
        orthogonalise(post, direction(post))
    with pytest.raises(EditError, match="dimensions"):
        orthogonalise(tied, Direction("resid_post.0", torch.ones(3)))
