"""patchclamp's own format: `config.json` and `model.safetensors`, as `Dictionary.push_to_hub` uploads them."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from patchclamp.dictionaries.dictionary import Dictionary

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write(dictionary: Dictionary, folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in dictionary.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(dictionary.config(), indent=1) + "\n")


def read(folder: Path) -> Dictionary:
    config = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / WEIGHTS)
    return Dictionary(
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        b_in=tensors["b_in"],
        threshold=tensors["threshold"],
        W_skip=tensors.get("W_skip"),
        select=config["select"],
        k=config["k"],
        shape_in=tuple(config["shape_in"]),
        shape_out=tuple(config["shape_out"]),
        part=config["part"],
        metadata=config["metadata"],
    )
