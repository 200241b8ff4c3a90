"""Checkpoints in folders load as they were saved; what is not there is said to be missing."""

import pytest
import torch

import patchclamp as pc
import tiny


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_a_folder_that_transformers_saved(name, tmp_path):
    from patchclamp.anatomy.trial import trial_inputs

    hf = tiny.build(name)
    hf.save_pretrained(tmp_path / "checkpoint")
    model = pc.load(tmp_path / "checkpoint")
    assert type(model.hf) is type(hf) and not model.hf.training and model.tokenizer is None
    with torch.no_grad():
        assert torch.equal(model.run(trial_inputs(hf)).logits, hf(**trial_inputs(hf)).logits)


def test_precision_is_that_of_the_checkpoint_unless_said(tmp_path):
    tiny.build("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "checkpoint")
    assert pc.load(tmp_path / "checkpoint").dtype == torch.bfloat16
    assert pc.load(tmp_path / "checkpoint", dtype=torch.float32).dtype == torch.float32


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(FileNotFoundError, match="did you mean"):
        pc.load(tmp_path / "chekpoint")
    with pytest.raises(ValueError, match="give one of them"):
        pc.load(tmp_path / "checkpoint", device="cpu", device_map="auto")
    with pytest.raises(TypeError, match=r"wrap takes a torch.nn.Module"):
        pc.wrap("gpt2")
