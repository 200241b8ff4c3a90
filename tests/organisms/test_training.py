from dataclasses import dataclass

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from patchclamp.organisms import training


@dataclass(frozen=True)
class Recipe:
    seed: int = 0
    steps: int = 12


def network(recipe: Recipe) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False)
        ).eval()


def run(out, recipe=Recipe(), stop_at=None):
    model = network(recipe)

    def loss_at(step):
        ids = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(step))
        return model(input_ids=ids, labels=ids).loss

    losses = training.fit(
        model,
        loss_at,
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=torch.optim.AdamW(model.parameters()),
        rate=lambda step: 1e-2 / (step + 1),
        every=5,
        snapshots=(0, 4, 12),
        measure=lambda done: {"norm": float(sum(p.detach().norm() for p in model.parameters()))},
        measure_every=4,
        stop_at=stop_at,
        progress=False,
    )
    return model, losses


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    whole, losses = run(tmp_path / "whole")
    _, first = run(tmp_path / "parts", stop_at=7)
    rest, both = run(tmp_path / "parts")
    assert len(first) == 7 and both == losses and len(losses) == 12
    assert same(whole, rest)
    assert (tmp_path / "whole" / "log.json").read_text() == (tmp_path / "parts" / "log.json").read_text()


def test_another_recipe_is_refused(tmp_path):
    run(tmp_path, stop_at=5)
    with pytest.raises(ValueError, match="another recipe"):
        run(tmp_path, Recipe(seed=1))


def test_snapshots_and_log_are_kept_at_their_steps(tmp_path):
    import json

    from safetensors.torch import load_file

    model, _ = run(tmp_path)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == [
        "000000.safetensors",
        "000004.safetensors",
        "000012.safetensors",
    ]
    last = load_file(tmp_path / "checkpoints" / "000012.safetensors")
    first = load_file(tmp_path / "checkpoints" / "000000.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(last[name], value.half())
    assert not torch.equal(first["lm_head.weight"], last["lm_head.weight"])
    assert [row["step"] for row in json.loads((tmp_path / "log.json").read_text())] == [0, 4, 8, 12]


def test_what_is_stored_loads_in_float32_and_says_how_it_was_made(tmp_path):
    import json

    model, losses = run(tmp_path)
    training.store(model, tmp_path, Recipe(), losses, extra={"accuracy": 0.5})
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())
    record = json.loads((tmp_path / "recipe.json").read_text())
    assert (
        record["steps"] == 12
        and record["accuracy"] == 0.5
        and record["parameters"] == sum(p.numel() for p in model.parameters())
    )
    assert record["loss"] == pytest.approx(sum(losses) / 12, rel=1e-3)
