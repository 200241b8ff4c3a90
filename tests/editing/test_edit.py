"""An edit goes on and comes off without a trace, and what it merges plain transformers load."""

import pytest
import torch
import transformers

import patchclamp as pc
from patchclamp.editing import Edit, EditError, load, untie
from tiny import build

IDS = torch.tensor([[5, 9, 3, 7]])
NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def model():
    return pc.wrap(build("llama"))


def weights(model):
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def some(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    out, inside = model.hf.get_parameter(NAME).shape
    left, right = torch.randn(out, 2, generator=generator), torch.randn(2, inside, generator=generator)
    mask = torch.rand(out, inside, generator=generator) > 0.5
    return left, right, mask


def test_each_kind_is_its_formula_and_leaves_no_bit_behind(model):
    left, right, mask = some(model)
    before, weight = weights(model), model.hf.get_parameter(NAME).detach().clone()
    for edit, expected in (
        (Edit.low_rank({NAME: (left, right)}), weight + left @ right),
        (Edit.dense({NAME: left @ right}), weight + left @ right),
        (Edit.masks({NAME: mask}), weight * mask),
        (Edit.low_rank({NAME: (left, right)}) + Edit.masks({NAME: mask}), (weight + left @ right) * mask),
    ):
        clean = model.run(IDS).logits
        with edit.applied(model):
            assert torch.allclose(model.hf.get_parameter(NAME), expected, atol=1e-6)
            assert not torch.equal(model.run(IDS).logits, clean)
        assert torch.equal(model.run(IDS).logits, clean)
        assert all(torch.equal(before[name], p) for name, p in model.hf.named_parameters())


def test_it_comes_off_after_an_error_and_may_be_nested(model):
    left, right, mask = some(model)
    before = weights(model)
    first, second = Edit.masks({NAME: mask}), Edit.low_rank({NAME: (left, right)})
    with pytest.raises(RuntimeError), first.applied(model), second.applied(model):
        raise RuntimeError
    assert all(torch.equal(before[name], p) for name, p in model.hf.named_parameters())


def test_half_precision_is_rounded_once(model):
    model = pc.wrap(build("llama").to(torch.bfloat16))
    left, right, _ = some(model)
    weight = model.hf.get_parameter(NAME).detach().clone()
    with Edit.low_rank({NAME: (left, right)}).applied(model):
        assert torch.equal(model.hf.get_parameter(NAME), (weight.float() + left @ right).to(torch.bfloat16))


def test_saved_and_loaded_it_does_the_same(model, tmp_path):
    left, right, mask = some(model)
    edit = Edit.low_rank({NAME: (left, right)}, fit="made up", seed=0) + Edit.masks({NAME: mask})
    back = load(edit.save(tmp_path / "edit"))
    assert back.fit == edit.fit and back.provenance == {"seed": 0}
    results = []
    for one in (edit, back):
        with one.applied(model):
            results.append(model.run(IDS).logits)
    assert torch.equal(*results)


def test_the_merged_checkpoint_is_the_edited_model(model, tmp_path):
    left, right, _ = some(model)
    edit = Edit.low_rank({NAME: (left, right)})
    with edit.applied(model):
        expected = model.run(IDS).logits
    folder = edit.merge(model, tmp_path / "merged")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(plain(IDS).logits, expected, atol=1e-6)
    with pytest.raises(FileExistsError, match="not empty"):
        edit.merge(model, folder)


def test_what_does_not_fit_is_refused_before_anything_is_touched(model):
    left, right, _ = some(model)
    before = weights(model)
    for edit, said in (
        (Edit.low_rank({NAME: (left, right), "model.layers.1.mlp.down_prj.weight": (left, right)}), "did you mean"),
        (Edit.dense({NAME: left}), r"its change \[32, 2\]"),
    ):
        with pytest.raises(EditError, match=said), edit.applied(model):
            pass
        assert all(torch.equal(before[name], p) for name, p in model.hf.named_parameters())


def test_a_shared_parameter_is_refused_until_it_is_untied_or_meant():
    model = pc.wrap(build("gpt2"))
    name = "transformer.wte.weight"
    shape = model.hf.get_parameter(name).shape
    edit = Edit.dense({name: torch.ones(shape)})
    with pytest.raises(EditError, match="same tensor as lm_head"), edit.applied(model):
        pass
    with edit.applied(model, tied=True):
        assert torch.equal(model.hf.lm_head.weight, model.hf.transformer.wte.weight)
    clean = model.run(IDS).logits
    assert untie(model) == ["lm_head.weight"] and torch.equal(model.run(IDS).logits, clean)
    head = model.hf.lm_head.weight.detach().clone()
    with edit.applied(model):
        assert torch.equal(model.hf.lm_head.weight, head)
