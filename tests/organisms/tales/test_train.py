import random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from patchclamp import organisms
from patchclamp.organisms.tales import grammar, train
from patchclamp.organisms.tales.family import RECIPES

TINY = train.Recipe(
    steps=36,
    stages=(("loops", 0, 4), ("names", 6, 16), ("everything", 12, 16), ("binding", 24, 12), ("statements", 30, 16)),
    falls=((12, 36, 1.0),),
    layers=1,
    width=32,
    heads=2,
    hidden=64,
    warmup=4,
    snapshots=(8, 16),
)


def test_a_document_sees_only_itself(tokenizer):
    """Packed into a row beside others, a document gets the logits that it gets alone."""
    hf = train.untrained(TINY, tokenizer).eval()
    documents = grammar.documents(6, seed=2)
    packed = train.batch(tokenizer, documents, 1.0)
    assert len(packed.ids) < len(documents)
    with torch.no_grad():
        together = hf(input_ids=packed.ids, attention_mask=packed.attend).logits
        for document in documents:
            ids = tokenizer(document.text, return_tensors="pt")["input_ids"]
            alone = hf(input_ids=ids).logits[0]
            (row, at), *_ = [
                (row, at)
                for row, some in enumerate(packed.ids.tolist())
                for at in range(len(some) - ids.shape[1] + 1)
                if some[at : at + ids.shape[1]] == ids[0].tolist()
            ]
            torch.testing.assert_close(together[row, at : at + ids.shape[1]], alone, atol=1e-3, rtol=1e-3)


def test_what_the_context_decides_weighs_more(tokenizer):
    (document,) = grammar.documents(1, seed=0, kind="two_hop")
    packed = train.batch(tokenizer, [document], 8.0)
    (target,) = packed.targets[packed.weights == 8.0].tolist()
    (span,) = [span for span in document.spans if span.role == "answer"]
    assert tokenizer.decode([target]).strip() == document.text[span.start : span.end]


def test_a_document_that_is_too_long_is_refused(tokenizer):
    long = grammar.Document("so " * 80, "story", ())
    with pytest.raises(ValueError, match="does not fit a row of 64"):
        train.batch(tokenizer, [long], 1.0)


def test_stages_have_their_own_text(tokenizer):
    kinds = []
    for _, step, _ in TINY.stages:
        packed = train.step_batch(tokenizer, TINY, step)
        again = train.step_batch(tokenizer, TINY, step)
        assert torch.equal(packed.ids, again.ids)
        kinds.append(" ".join(tokenizer.batch_decode(packed.ids)))
    assert "True or false" not in kinds[0] and "," not in kinds[0]
    assert "isn't" in kinds[1] and "born" not in kinds[1]
    assert kinds[3].count("Q: a ") > kinds[2].count("Q: a ") == 0
    assert kinds[4].count("rue or false") > kinds[2].count("rue or false")
    assert len({*kinds}) == len(TINY.stages)


def test_training_lowers_the_loss_and_resumes_bit_for_bit(tmp_path):
    whole = train.train(tmp_path / "whole", recipe=TINY, every=12, progress=False)
    assert sum(whole[-4:]) < sum(whole[:4]) - 2
    train.train(tmp_path / "parts", recipe=TINY, every=12, stop_at=12, progress=False)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    parts = train.train(tmp_path / "parts", recipe=TINY, every=12, progress=False)
    assert parts == whole
    for file in ("model.safetensors", "checkpoints/000008.safetensors", "checkpoints/000016.safetensors"):
        weights = [(tmp_path / name / file).read_bytes() for name in ("whole", "parts")]
        assert weights[0] == weights[1], file
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert loaded.dtype == torch.float32
    with pytest.raises(ValueError, match="another recipe"):
        train.train(tmp_path / "whole", recipe=train.Recipe(seed=1), progress=False)


def test_training_leaves_the_global_generators_alone(tmp_path):
    before, python = torch.random.get_rng_state(), random.getstate()
    train.train(tmp_path, recipe=TINY, stop_at=1, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    assert random.getstate() == python


@pytest.mark.slow
def test_the_shipped_recipe_goes_the_shipped_way(tmp_path):
    """Its first 256 steps give the shipped checkpoint, up to half precision and the machine's order of sums."""
    train.train(tmp_path, recipe=RECIPES["tales"], stop_at=256, progress=False)
    for step in (8, 256):
        again, shipped = (
            load_file(path)
            for path in (tmp_path / "checkpoints" / f"{step:06d}.safetensors", organisms.path("tales", step))
        )
        for name, weight in shipped.items():
            far = (again[name].float() - weight.float()).norm() / weight.float().norm()
            assert far < (0.01 if step == 8 else 0.3), (step, name, far)
