"""SAELens (6.x): `cfg.json`, `sae_weights.safetensors`; W_enc is [d_in, d_sae], W_dec [d_sae, d_out].

Its conventions: `apply_b_dec_to_input` says whether b_dec is taken off the input. A top-k whose
`rescale_acts_by_decoder_norm` is set ranks pre-activations times decoder norms, and its values have those norms in
them. BatchTopK and Matryoshka are stored as `jumprelu`.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.formats.plain import bias_of, centred_by_output, one_site, refuse

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = {
    "standard": "threshold",
    "jumprelu": "threshold",
    "gated": "threshold",
    "topk": "topk",
    "abstopk": "absolute_topk",
    "transcoder": "threshold",
    "skip_transcoder": "threshold",
    "jumprelu_transcoder": "threshold",
    "jumprelu_skip_transcoder": "threshold",
}


def read(folder: Path) -> Dictionary:
    config = json.loads((folder / CONFIG).read_text())
    architecture = config.get("architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{folder / CONFIG}: architecture {architecture!r} is not known; known are {known}")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") not in ("none", None):
            raise ValueError(
                f"{folder / CONFIG}: {name}={config[name]!r} is no part of the weights; fold it in SAELens first"
            )
    t = load_file(folder / WEIGHTS)
    encoder, decoder = t["W_enc"].T, t["W_dec"]
    bias = t["b_mag" if architecture == "gated" else "b_enc"]
    threshold: Any = t.get("threshold", 0.0)
    if architecture == "gated":
        gain = t["r_mag"].exp()
        threshold = (bias - gain * t["b_gate"]).clamp_min(0)
        encoder = encoder * gain[:, None]
    if ARCHITECTURES[architecture] != "threshold" and config.get("rescale_acts_by_decoder_norm"):
        norms = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * norms[:, None], bias * norms, decoder / norms[:, None]
    return Dictionary(
        encoder,
        bias,
        decoder,
        t["b_dec"],
        b_in=t["b_dec"] if config.get("apply_b_dec_to_input", True) and "W_skip" not in t else None,
        select=ARCHITECTURES[architecture],
        k=config.get("k") if ARCHITECTURES[architecture] != "threshold" else None,
        threshold=threshold,
        W_skip=t["W_skip"].T if "W_skip" in t else None,
        metadata=config.get("metadata") or {},
    )


def write(dictionary: Dictionary, folder: Path) -> None:
    one_site(dictionary, "SAELens")
    if dictionary.select == "groupmax":
        raise refuse(dictionary, "SAELens", "the largest of each group")
    skip, jump = dictionary.W_skip, bool((dictionary.threshold != 0).any())
    across = skip is not None or dictionary.d_in != dictionary.d_out
    centred = not across and centred_by_output(dictionary)
    if dictionary.select == "threshold":
        architecture = {
            (False, False): "jumprelu" if jump else "standard",
            (True, False): "jumprelu_transcoder" if jump else "transcoder",
            (True, True): "jumprelu_skip_transcoder" if jump else "skip_transcoder",
        }[across, skip is not None]
    elif across:
        raise refuse(dictionary, "SAELens", "top-k of another site")
    else:
        architecture = {"topk": "topk", "absolute_topk": "abstopk"}[dictionary.select]
    tensors = {
        "W_enc": dictionary.W_enc.T.contiguous(),
        "b_enc": bias_of(dictionary, dictionary.b_dec if centred else None),
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
        **({"threshold": dictionary.threshold} if architecture.startswith("jumprelu") else {}),
        **({"W_skip": skip.T.contiguous()} if skip is not None else {}),
    }
    config = {
        "architecture": architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.width,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": dictionary.metadata,
        **({"d_out": dictionary.d_out} if across else {}),
        **({"k": dictionary.k, "rescale_acts_by_decoder_norm": False} if dictionary.k else {}),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
