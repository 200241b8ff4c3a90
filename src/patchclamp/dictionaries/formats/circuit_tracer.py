"""circuit-tracer: transcoders of a whole model, one for each layer or across layers, with a `config.yaml` beside them.

    layer_0.safetensors, layer_1.safetensors, ...       W_enc [F, d], W_dec [F, d], b_enc, b_dec, W_skip [d_out, d_in],
                                                        activation_function.threshold
    W_enc_0.safetensors, W_dec_0.safetensors, ...       across layers: W_enc_0 [F, d], b_enc_0, b_dec_0, threshold_0
                                                        W_skip_0 [d_in, d_out]; W_dec_i [F, L - i, d]

Its conventions: nothing is taken off the input, values are activations of decoder rows as they are, and nothing is
scaled. Top-k keeps negative values where fewer than k are positive, which a `Dictionary` does not: they are refused.
A set of one layer is read as a `Dictionary` by `load`; sets by `read_set`, as {layer: Dictionary} or across layers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchclamp.dictionaries.crosslayer import CrossLayerTranscoder
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.formats.plain import bias_of, one_site, refuse

CONFIG = "config.yaml"
NAME = "circuit-tracer"


def read(folder: Path) -> Dictionary:
    """The one transcoder of a folder."""
    found = read_set(folder)
    if isinstance(found, CrossLayerTranscoder) or len(found) != 1:
        raise ValueError(f"{folder} holds a set of transcoders: formats.circuit_tracer.read_set(folder) reads them all")
    return next(iter(found.values()))


def write(dictionary: Dictionary, folder: Path) -> None:
    """A set of one layer, layer 0."""
    write_set({0: dictionary}, folder)


def read_set(folder: str | Path) -> dict[int, Dictionary] | CrossLayerTranscoder:
    """The transcoders of a folder, {layer: transcoder}, or one across layers.

    FileNotFoundError where there are none; ValueError for a kind that a `Dictionary` is not.
    """
    folder = Path(folder)
    if any(folder.glob("W_enc_*.safetensors")):
        return _read_across(folder)
    files = {int(path.stem.removeprefix("layer_")): path for path in folder.glob("layer_*.safetensors")}
    if not files:
        raise FileNotFoundError(f"{folder} has neither layer_0.safetensors nor W_enc_0.safetensors")
    config = _config(folder)
    if config.get("activation") == "topk" or config.get("k") is not None:
        raise ValueError(f"{folder / CONFIG}: top-k that keeps negative values is no rule of a dictionary here")
    return {layer: _read_layer(files[layer], config) for layer in sorted(files)}


def write_set(transcoders: Mapping[int, Dictionary] | CrossLayerTranscoder, folder: str | Path) -> None:
    """Write transcoders of all layers, 0 and on without a gap, or one across layers.

    ValueError for layers that are missing, for other widths, and for what circuit-tracer does not have: top-k.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(transcoders, CrossLayerTranscoder):
        _write_across(transcoders, folder)
        kind, metadata, skip = "cross_layer_transcoder", transcoders.metadata, transcoders.W_skip is not None
    else:
        if sorted(transcoders) != list(range(len(transcoders))):
            raise ValueError(f"layers {sorted(transcoders)}: {NAME} has a transcoder for each layer from 0 on")
        if len({transcoder.width for transcoder in transcoders.values()}) > 1:
            raise ValueError(f"widths {[t.width for t in transcoders.values()]}: {NAME} has one for all layers")
        for layer, transcoder in transcoders.items():
            _write_layer(transcoder, folder / f"layer_{layer}.safetensors")
        kind, metadata = "transcoder_set", transcoders[0].metadata
        skip = transcoders[0].W_skip is not None
    config = {
        "model_kind": kind,
        "model_name": str(metadata.get("model", "")),
        "feature_input_hook": metadata.get("feature_input_hook", "mlp.hook_in"),
        "feature_output_hook": metadata.get("feature_output_hook", "hook_mlp_out"),
        "skip_connection": skip,
    }
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


def _read_layer(path: Path, config: dict[str, Any]) -> Dictionary:
    t = {name: tensor.float() for name, tensor in load_file(path).items()}
    _known(path, t, {"W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "activation_function.threshold"})
    return Dictionary(
        t["W_enc"],
        t["b_enc"],
        t["W_dec"],
        t["b_dec"],
        threshold=_threshold(path, t.get("activation_function.threshold"), len(t["b_enc"])),
        W_skip=t["W_skip"].T if "W_skip" in t else None,
        metadata=_metadata(config),
    )


def _write_layer(transcoder: Dictionary, path: Path) -> None:
    one_site(transcoder, NAME)
    if transcoder.select != "threshold":
        raise refuse(transcoder, NAME, f"{transcoder.select}, whose values cannot be negative")
    tensors = {
        "W_enc": transcoder.W_enc,
        "W_dec": transcoder.W_dec,
        "b_enc": bias_of(transcoder, None),
        "b_dec": transcoder.b_dec,
        **({} if transcoder.W_skip is None else {"W_skip": transcoder.W_skip.T}),
    }
    if bool((transcoder.threshold != 0).any()):
        tensors["activation_function.threshold"] = transcoder.threshold
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _read_across(folder: Path) -> CrossLayerTranscoder:
    layers = len(list(folder.glob("W_enc_*.safetensors")))
    encoders, decoders = [], []
    for i in range(layers):
        path = folder / f"W_enc_{i}.safetensors"
        t = {name.removesuffix(f"_{i}"): tensor.float() for name, tensor in load_file(path).items()}
        _known(path, t, {"W_enc", "b_enc", "b_dec", "threshold", "W_skip"})
        encoders.append(t)
        decoders.append(load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"].float())
    width = len(encoders[0]["b_enc"])
    skips = [t["W_skip"] for t in encoders if "W_skip" in t]
    return CrossLayerTranscoder(
        torch.stack([t["W_enc"] for t in encoders]),
        torch.stack([t["b_enc"] for t in encoders]),
        [torch.cat([decoders[i][:, m - i] for i in range(m + 1)]) for m in range(layers)],
        torch.stack([t["b_dec"] for t in encoders]),
        threshold=torch.stack(
            [
                torch.as_tensor(_threshold(folder / f"W_enc_{i}.safetensors", t.get("threshold"), width)).expand(width)
                for i, t in enumerate(encoders)
            ]
        ),
        W_skip=torch.stack(skips) if skips else None,
        metadata=_metadata(_config(folder)),
    )


def _write_across(transcoder: CrossLayerTranscoder, folder: Path) -> None:
    if transcoder.select != "threshold":
        raise ValueError(f"{NAME} has no cross-layer transcoder with {transcoder.extra_repr()}")
    jump = bool((transcoder.threshold != 0).any())
    tables = transcoder.W_dec
    for i in range(transcoder.layers):
        moved = transcoder.b_enc[i].double() - transcoder.W_enc[i].double() @ transcoder.b_in[i].double()
        tensors = {
            f"W_enc_{i}": transcoder.W_enc[i],
            f"b_enc_{i}": moved.to(transcoder.b_enc.dtype),
            f"b_dec_{i}": transcoder.b_dec[i],
            **({f"threshold_{i}": transcoder.threshold[i]} if jump else {}),
            **({} if transcoder.W_skip is None else {f"W_skip_{i}": transcoder.W_skip[i]}),
        }
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"W_enc_{i}.safetensors")
        rows = slice(i * transcoder.width, (i + 1) * transcoder.width)
        decoder = torch.stack([tables[m][rows] for m in range(i, transcoder.layers)], 1)
        save_file({f"W_dec_{i}": decoder.contiguous()}, folder / f"W_dec_{i}.safetensors")


def _threshold(path: Path, threshold: Tensor | None, width: int) -> Tensor | float:
    """A threshold is a number or one for each latent. A negative one would let negative values through: refused."""
    if threshold is None:
        return 0.0
    if bool((threshold < 0).any()):
        raise ValueError(f"{path}: negative thresholds let negative values through, which no dictionary here does")
    return threshold.flatten().expand(width)


def _known(path: Path, tensors: Mapping[str, Tensor], names: set[str]) -> None:
    other = sorted(set(tensors) - names)
    if other:
        raise ValueError(f"{path}: tensors {', '.join(other)} are not known; known are {', '.join(sorted(names))}")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: config[name] for name in ("feature_input_hook", "feature_output_hook", "scan") if config.get(name)}
    return kept | ({"model": config["model_name"]} if config.get("model_name") else {})
