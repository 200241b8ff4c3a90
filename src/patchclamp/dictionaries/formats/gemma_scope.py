"""Gemma Scope 1 (`params.npz`) and 2 (`config.json`, `params.safetensors`): thresholds, nothing taken off the input.

W_enc is [d, F], W_dec [F, d]; Gemma Scope 2 writes names in lower case and may have an affine skip connection [d, d].
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.formats.plain import bias_of, one_site, refuse

NPZ, CONFIG, WEIGHTS = "params.npz", "config.json", "params.safetensors"


def read(folder: Path) -> Dictionary:
    with np.load(folder / NPZ) as file:
        t = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    return _made(t, {})


def write(dictionary: Dictionary, folder: Path) -> None:
    if dictionary.W_skip is not None:
        raise refuse(dictionary, "Gemma Scope 1", "a skip connection")
    np.savez(folder / NPZ, **{name: tensor.numpy() for name, tensor in _tensors(dictionary, "Gemma Scope 1").items()})  # pyright: ignore[reportArgumentType]


def read_2(folder: Path) -> Dictionary:
    config = json.loads((folder / CONFIG).read_text())
    if config.get("architecture") != "jump_relu":
        raise ValueError(f"{folder / CONFIG}: architecture {config.get('architecture')!r}; known is 'jump_relu'")
    t = load_file(folder / WEIGHTS)
    names = {"w_enc": "W_enc", "w_dec": "W_dec"}
    return _made({names.get(name, name): tensor for name, tensor in t.items()}, config)


def write_2(dictionary: Dictionary, folder: Path) -> None:
    tensors = {name.lower(): tensor for name, tensor in _tensors(dictionary, "Gemma Scope 2").items()}
    if dictionary.W_skip is not None:
        tensors["affine_skip_connection"] = dictionary.W_skip
    config = {
        **dictionary.metadata,
        "architecture": "jump_relu",
        "width": dictionary.width,
        "affine_connection": dictionary.W_skip is not None,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def _made(t: dict[str, Tensor], metadata: dict) -> Dictionary:
    skip = t.get("affine_skip_connection")
    encoder = t["W_enc"].T
    return Dictionary(
        encoder, t["b_enc"], t["W_dec"], t["b_dec"], threshold=t["threshold"], W_skip=skip, metadata=metadata
    )


def _tensors(dictionary: Dictionary, library: str) -> dict[str, Tensor]:
    one_site(dictionary, library)
    if dictionary.select != "threshold":
        raise refuse(dictionary, library, f"the choice {dictionary.select!r}")
    return {
        "W_enc": dictionary.W_enc.T.contiguous(),
        "W_dec": dictionary.W_dec,
        "b_enc": bias_of(dictionary, None),
        "b_dec": dictionary.b_dec,
        "threshold": dictionary.threshold,
    }
