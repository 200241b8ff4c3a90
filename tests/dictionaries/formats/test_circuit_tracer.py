"""circuit-tracer's files: the same codes and outputs after a round trip, by its layout, and what it does not have."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from patchclamp.dictionaries import CrossLayerTranscoder, Dictionary, load
from patchclamp.dictionaries.formats.circuit_tracer import read_set, write_set

D, F, L = 6, 12, 3


def draw(seed: int):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g)


def transcoder(seed: int, *, skip: bool = False, threshold: float = 0.0) -> Dictionary:
    d = draw(seed)
    return Dictionary(d(F, D), d(F), d(F, D), d(D), b_in=d(D), threshold=threshold, W_skip=d(D, D) if skip else None)


def across(threshold: float = 0.0, skip: bool = False) -> CrossLayerTranscoder:
    d = draw(9)
    return CrossLayerTranscoder(
        d(L, F, D),
        d(L, F),
        [d(F * (m + 1), D) for m in range(L)],
        d(L, D),
        b_in=d(L, D),
        threshold=threshold,
        W_skip=d(L, D, D) if skip else None,
    )


@pytest.mark.parametrize("options", [{}, {"threshold": 0.5}, {"skip": True, "threshold": 0.5}])
def test_a_set_comes_back_as_it_was(tmp_path, options):
    transcoders = {layer: transcoder(layer, **options) for layer in range(L)}
    write_set(transcoders, tmp_path)
    found, x = read_set(tmp_path), draw(3)(20, D)
    assert sorted(found) == [0, 1, 2]
    for layer, one in transcoders.items():
        torch.testing.assert_close(found[layer].encode(x).dense(), one.encode(x).dense(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[layer](x), one(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.5}, {"skip": True}])
def test_across_layers_it_comes_back_as_it_was(tmp_path, options):
    one = across(**options)
    one.save(tmp_path, "circuit_tracer")
    found, x = read_set(tmp_path), draw(3)(20, L, D)
    torch.testing.assert_close(found.encode(x).dense(), one.encode(x).dense(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found(x), one(x), rtol=1e-4, atol=2e-5)
    layout = {path.name: {k: tuple(t.shape) for k, t in load_file(path).items()} for path in tmp_path.glob("*.saf*")}
    assert layout["W_dec_1.safetensors"] == {"W_dec_1": (F, L - 1, D)}
    assert layout["W_enc_0.safetensors"]["W_enc_0"] == (F, D)
    assert "model_kind: cross_layer_transcoder" in (tmp_path / "config.yaml").read_text()


def test_one_dictionary_is_a_set_of_one_layer(tmp_path):
    one, x = transcoder(0, threshold=0.2), draw(3)(20, D)
    one.save(tmp_path / "one", "circuit_tracer")
    torch.testing.assert_close(load(tmp_path / "one")(x), one(x), rtol=1e-4, atol=1e-5)
    write_set({0: one, 1: one}, tmp_path / "two")
    with pytest.raises(ValueError, match="read_set"):
        load(tmp_path / "two")


def test_what_it_does_not_have_is_refused(tmp_path):
    topk = Dictionary(torch.eye(D), torch.zeros(D), torch.eye(D), torch.zeros(D), select="topk", k=2)
    with pytest.raises(ValueError, match="circuit-tracer has no dictionary with topk"):
        topk.save(tmp_path, "circuit_tracer")
    with pytest.raises(ValueError, match="each layer from 0"):
        write_set({1: transcoder(1)}, tmp_path)
    with pytest.raises(ValueError, match="one for all layers"):
        write_set({0: transcoder(0), 1: topk}, tmp_path)
    with pytest.raises(FileNotFoundError, match="neither"):
        read_set(tmp_path / "nothing")


def test_files_that_mean_something_else_are_refused(tmp_path):
    write_set({0: transcoder(0, threshold=0.5)}, tmp_path)
    path = tmp_path / "layer_0.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"W_gate": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="W_gate"):
        read_set(tmp_path)
    save_file(tensors | {"activation_function.threshold": -torch.ones(F)}, path)
    with pytest.raises(ValueError, match="negative thresholds"):
        read_set(tmp_path)
    save_file(tensors, path)
    (tmp_path / "config.yaml").write_text("model_kind: transcoder_set\nactivation: topk\nk: 32\n")
    with pytest.raises(ValueError, match="top-k"):
        read_set(tmp_path)
