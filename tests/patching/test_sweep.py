"""A sweep's every number is that of one whole forward pass with one patch."""

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp.sites import SiteError
from patching import cases

ARCHITECTURES = [
    "gpt2",
    "llama",
    "gemma2",
    "falcon",
    "gptj",
    "bloom",
    "opt",
    "mixtral",
    "gpt_oss",
    "granite",
    "mistral",
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stream_and_heads_are_exact(name: str):
    model, task = cases.model(name), cases.task()
    for pattern, positions in (("resid_pre.*", "each"), ("z.*.*", "all")):
        table = pc.patching.sweep(model, task, pattern, positions=positions)
        expected = cases.naive(model, task, pattern, positions).reshape(table.shape)
        np.testing.assert_allclose(table.values, expected, atol=1e-4)
    assert table.dims == ("layer", "head")


@pytest.mark.parametrize(
    "pattern", ["attn_out.*", "mlp_out.*", "resid_post.*", "resid_mid.*", "q.1.*", "k.*", "v.1.*", "mlp_post.2"]
)
def test_every_kind_is_exact(pattern: str):
    model, task = cases.model("llama"), cases.task()
    table = pc.patching.sweep(model, task, pattern, positions="each")
    np.testing.assert_allclose(table.values.ravel(), cases.naive(model, task, pattern, "each"), atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_patterns_are_exact(name: str):
    model, task = cases.model(name), cases.task()
    table = pc.patching.sweep(model, task, "pattern.*.*", positions="all")
    np.testing.assert_allclose(table.values.ravel(), cases.naive(model, task, "pattern.*.*", "all"), atol=1e-4)


def test_prompts_of_different_lengths():
    model, task = cases.model("llama"), cases.task(ragged=True)
    for pattern, positions in (("resid_pre.*", "each"), ("z.*.*", "all")):
        table = pc.patching.sweep(model, task, pattern, positions=positions)
        np.testing.assert_allclose(table.values.ravel(), cases.naive(model, task, pattern, positions), atol=1e-4)


def test_noising():
    model, task = cases.model("gpt2"), cases.task()
    table = pc.patching.sweep(model, task, "resid_pre.*", direction="noise")
    np.testing.assert_allclose(
        table.values.ravel(), cases.naive(model, task, "resid_pre.*", "each", noise=True), atol=1e-4
    )
    np.testing.assert_allclose(table.values[:, : cases.DIFFERS], 1.0, atol=1e-6)


def test_a_bidirectional_model_is_not_cut_short():
    model, task = cases.model("bert"), cases.task()
    assert not model.certificate.causal
    table = pc.patching.sweep(model, task, "resid_post.*")
    np.testing.assert_allclose(table.values.ravel(), cases.naive(model, task, "resid_post.*", "each"), atol=1e-4)
    assert np.abs(table.values[0, : cases.DIFFERS]).max() > 1e-3  # earlier positions do carry it


def test_before_the_first_difference_there_is_nothing():
    table = pc.patching.sweep(cases.model("llama"), cases.task(), "resid_pre.*")
    assert (table.values[:, : cases.DIFFERS] == 0).all()


def test_the_whole_stream_restores_everything():
    model, task = cases.model("llama"), cases.task()
    table = pc.patching.sweep(model, task, "resid_pre.*", positions="all")
    np.testing.assert_allclose(table.values, 1.0, atol=1e-5)


def test_a_small_memory_gives_the_same_table():
    model, task = cases.model("llama"), cases.task()
    whole = pc.patching.sweep(model, task, "z.*.*", positions="all")
    pieces = pc.patching.sweep(model, task, "z.*.*", positions="all", memory=1e-6)
    np.testing.assert_allclose(whole.values, pieces.values, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model, task = cases.model("gptj"), cases.task()
    before = {name: dict(module.__dict__) for name, module in model.hf.named_modules()}
    pc.patching.sweep(model, task, "resid_pre.*")
    for name, module in model.hf.named_modules():
        assert "forward" not in module.__dict__
        assert set(module.__dict__) == set(before[name])
        assert not module._forward_pre_hooks and not module._forward_hooks


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_embeddings_are_exact(name: str):
    """They stand before the block that a run is taken up at."""
    model, task = cases.model(name), cases.task()
    table = pc.patching.sweep(model, task, "embed", positions="each")
    np.testing.assert_allclose(table.values.ravel(), cases.naive(model, task, "embed", "each"), atol=1e-4)
    assert float(table.max()) > 0.5


def test_a_corruption_stays_where_another_embedding_is_patched():
    model, task = cases.model("gpt2"), cases.task()
    restored = pc.patching.sweep(model, task, "embed", positions="each", corruption="gaussian")
    untouched = pc.patching.sweep(model, task, "pos_embed", positions="each", corruption="gaussian")
    assert float(restored.max()) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(untouched.values, 0, atol=1e-4)


@pytest.mark.parametrize("corruption", ["gaussian", "mean", "zero"])
def test_corrupted_embeddings(corruption: str):
    model, task = cases.model("gpt2"), cases.task()
    table = pc.patching.sweep(model, task, "resid_pre.*", corruption=corruption)
    site, values = pc.patching.corrupted_embedding(model, task, corruption)
    clean = model.run(task.clean, record="resid_pre.*")
    do = [pc.patch(site, values)]

    def score(logits):
        return float(pc.metrics.logit_difference(task.at_answer(logits), task).mean())

    low, high = score(model.run(task.clean, do=do).logits), score(clean.logits)
    for layer in range(3):
        out = model.run(task.clean, do=[*do, pc.patch(f"resid_pre.{layer}", clean, pos=cases.DIFFERS)])
        expected = (score(out.logits) - low) / (high - low)
        assert float(table[layer, cases.DIFFERS]) == pytest.approx(expected, abs=1e-4)


def test_units_without_normalisation_are_the_metric():
    model, task = cases.model("llama"), cases.task()
    plain = pc.patching.sweep(model, task, "resid_pre.*", normalise=False, metric="probability")
    assert plain.attrs["corrupted"] == pytest.approx(float(plain[0, 0]), abs=1e-7)
    assert plain.name == "probability"


def test_roles_and_single_positions():
    model, task = cases.model("llama"), cases.task()
    each = pc.patching.sweep(model, task, "resid_pre.*")
    roles = pc.patching.sweep(model, task, "resid_pre.*", positions="labels")
    assert roles.dims == ("layer", "role")
    np.testing.assert_allclose(roles.sel(role="END"), each[:, -1], atol=1e-6)
    last = pc.patching.sweep(model, task, "resid_pre.*", positions=-1)
    np.testing.assert_allclose(last, each[:, -1], atol=1e-6)


def test_errors_teach():
    model, task = cases.model("llama"), cases.task()
    with pytest.raises(ValueError, match="denoise"):
        pc.patching.sweep(model, task, "resid_pre.*", direction="clean")  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="logit_difference"):
        pc.patching.sweep(model, task, "resid_pre.*", metric="logit_diference")
    with pytest.raises(SiteError, match="layer 7"):
        pc.patching.sweep(model, task, "resid_pre.7")
    with pytest.raises(ValueError, match="corruption"):
        pc.patching.sweep(model, task, "resid_pre.*", corruption="noise")  # type: ignore[arg-type]
    foreign = pc.Task.from_tokens(clean=[[1, 500]], corrupt=[[2, 500]], answers=[3], wrong=[4])
    with pytest.raises(ValueError, match="500"):
        pc.patching.sweep(model, foreign, "resid_pre.*")


def test_another_thread_is_not_disturbed():
    """While blocks are passed through here, another thread's run of the same model gives its own logits."""
    import threading

    model, task = cases.model("llama"), cases.task()
    expected = model.run(task.clean).logits
    stop, wrong = threading.Event(), []

    def elsewhere():
        while not stop.is_set():
            if not torch.equal(model.run(task.clean).logits, expected):
                wrong.append(1)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        for _ in range(3):
            pc.patching.sweep(model, task, "resid_pre.*")
    finally:
        stop.set()
        thread.join()
    assert not wrong
