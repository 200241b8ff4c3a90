"""sparsify (EleutherAI): `cfg.json`, `sae.safetensors`; encoder.weight and W_dec are [num_latents, d_in].

Its conventions: b_dec is taken off the input unless it is a transcoder; values are the top k of relu(z), or the largest
of each of k groups; a skip transcoder adds W_skip x.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.formats.plain import bias_of, one_site, refuse

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(folder: Path) -> Dictionary:
    config = json.loads((folder / CONFIG).read_text())
    if config.get("signed"):
        raise ValueError(f"{folder / CONFIG}: signed=true, of an older sparsify, is not known")
    t = load_file(folder / WEIGHTS)
    return Dictionary(
        t["encoder.weight"],
        t["encoder.bias"],
        t["W_dec"],
        t["b_dec"],
        b_in=None if config.get("transcode") else t["b_dec"],
        select=config.get("activation", "topk"),
        k=config["k"],
        W_skip=t["W_skip"].T if "W_skip" in t else None,
        metadata={key: value for key, value in config.items() if value is not None},
    )


def write(dictionary: Dictionary, folder: Path) -> None:
    one_site(dictionary, "sparsify")
    if dictionary.select not in ("topk", "groupmax"):
        raise refuse(dictionary, "sparsify", f"the choice {dictionary.select!r}")
    if dictionary.d_in != dictionary.d_out:
        raise refuse(dictionary, "sparsify", "an output of another dimension than its input")
    # Whether it was trained as a transcoder does not show in the weights: without the centring it computes the same.
    transcode = dictionary.W_skip is not None or bool(torch.all(dictionary.b_in == 0))
    tensors = {
        "encoder.weight": dictionary.W_enc,
        "encoder.bias": bias_of(dictionary, None if transcode else dictionary.b_dec),
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
        **({"W_skip": dictionary.W_skip.T.contiguous()} if dictionary.W_skip is not None else {}),
    }
    config = {
        "activation": dictionary.select,
        "expansion_factor": 0,
        "normalize_decoder": False,
        "num_latents": dictionary.width,
        "k": dictionary.k,
        "multi_topk": False,
        "skip_connection": dictionary.W_skip is not None,
        "transcode": transcode,
        "d_in": dictionary.d_in,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
