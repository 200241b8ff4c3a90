"""dictionary_learning: `ae.pt` (a state dict), `config.json` with `trainer.dict_class`; weights are `nn.Linear`'s.

Its conventions: every class but `AutoEncoderNew` and `JumpReluAutoEncoder` takes its decoder's bias off the input. For
`JumpReluAutoEncoder` that is an attribute that no file holds: it is read as False, as theirs does. BatchTopK and
Matryoshka use their threshold, top-k its k.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.formats.plain import bias_of, one_site, refuse

CONFIG, WEIGHTS = "config.json", "ae.pt"


def read(folder: Path) -> Dictionary:
    trainer = json.loads((folder / CONFIG).read_text())["trainer"]
    name = trainer.get("dict_class")
    t: dict[str, Tensor] = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    metadata = {key: value for key, value in trainer.items() if isinstance(value, str | int | float | bool)}

    def made(
        encoder: Tensor, bias: Tensor, decoder: Tensor, b_dec: Tensor, b_in: Tensor | None, **how: Any
    ) -> Dictionary:
        return Dictionary(encoder, bias, decoder, b_dec, b_in=b_in, metadata=metadata, **how)

    match name:
        case "AutoEncoder":
            bias = t["bias"]
            return made(t["encoder.weight"], t["encoder.bias"], t["decoder.weight"].T, bias, bias)
        case "AutoEncoderNew":
            return made(t["encoder.weight"], t["encoder.bias"], t["decoder.weight"].T, t["decoder.bias"], None)
        case "GatedAutoEncoder":
            gain, bias = t["r_mag"].exp(), t["decoder_bias"]
            threshold = (t["mag_bias"] - gain * t["gate_bias"]).clamp_min(0)
            encoder = t["encoder.weight"] * gain[:, None]
            return made(encoder, t["mag_bias"], t["decoder.weight"].T, bias, bias, threshold=threshold)
        case "AutoEncoderTopK":
            how = {"select": "topk", "k": int(t["k"])}
            decoder = t["decoder.weight"].T
            return made(t["encoder.weight"], t["encoder.bias"], decoder, t["b_dec"], t["b_dec"], **how)
        case "BatchTopKSAE":
            how = {"threshold": float(t["threshold"])}
            decoder = t["decoder.weight"].T
            return made(t["encoder.weight"], t["encoder.bias"], decoder, t["b_dec"], t["b_dec"], **how)
        case "MatryoshkaBatchTopKSAE":
            how = {"threshold": float(t["threshold"])}
            return made(t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], t["b_dec"], **how)
        case "JumpReluAutoEncoder":
            return made(t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], None, threshold=t["threshold"])
    raise ValueError(f"{folder / CONFIG}: dict_class {name!r} is not known")


def write(dictionary: Dictionary, folder: Path) -> None:
    one_site(dictionary, "dictionary_learning")
    if dictionary.W_skip is not None or dictionary.d_in != dictionary.d_out:
        raise refuse(dictionary, "dictionary_learning", "another output than its input")
    if dictionary.select == "topk":
        name = "AutoEncoderTopK"
        tensors = {
            "k": torch.tensor(dictionary.k),
            "threshold": torch.tensor(-1.0),
            "encoder.weight": dictionary.W_enc,
            "encoder.bias": bias_of(dictionary, dictionary.b_dec),
            "decoder.weight": dictionary.W_dec.T.contiguous(),
            "b_dec": dictionary.b_dec,
        }
    elif dictionary.select == "threshold":
        name = "JumpReluAutoEncoder"
        tensors = {
            "W_enc": dictionary.W_enc.T.contiguous(),
            "b_enc": bias_of(dictionary, None),
            "W_dec": dictionary.W_dec,
            "b_dec": dictionary.b_dec,
            "threshold": dictionary.threshold,
        }
    else:
        raise refuse(dictionary, "dictionary_learning", f"the choice {dictionary.select!r}")
    trainer = {
        **dictionary.metadata,
        "dict_class": name,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.width,
        "k": dictionary.k,
    }
    torch.save({key: tensor.clone() for key, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"trainer": trainer, "buffer": {}}, indent=1) + "\n")
