"""Round trips of dictionaries against the libraries' own code, both ways, on random weights.

    bench/.venv-dictionaries/bin/python bench/formats.py --json bench/results/formats.json

Theirs to ours: their class with random weights writes a folder by its own code; ours reads it; both encode and decode
the same rows. Ours to theirs: the other way round. Prints the largest difference of each; status 1 above 1e-4.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import torch
from torch import Tensor, nn

from patchclamp import dictionaries

D, WIDTH, K, ROWS = 24, 96, 5, 64
Case = tuple[str, Callable[[Path], Callable[[Tensor], tuple[Tensor, Tensor]]]]


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers in every parameter; thresholds and the like stay positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            if "threshold" in name:
                parameter.abs_()
    return module


def saelens() -> Iterator[Case]:
    from sae_lens import SAE
    from sae_lens.saes import abstopk_sae, gated_sae, jumprelu_sae, standard_sae, topk_sae, transcoder

    for name, network, config, options in (
        ("standard", standard_sae.StandardSAE, standard_sae.StandardSAEConfig, {}),
        (
            "standard, b_dec not taken off",
            standard_sae.StandardSAE,
            standard_sae.StandardSAEConfig,
            {"apply_b_dec_to_input": False},
        ),
        ("jumprelu", jumprelu_sae.JumpReLUSAE, jumprelu_sae.JumpReLUSAEConfig, {}),
        ("gated", gated_sae.GatedSAE, gated_sae.GatedSAEConfig, {}),
        ("topk", topk_sae.TopKSAE, topk_sae.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": False}),
        ("topk, rescaled", topk_sae.TopKSAE, topk_sae.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        ("abstopk", abstopk_sae.AbsTopKSAE, abstopk_sae.AbsTopKSAEConfig, {"k": K}),
        ("transcoder", transcoder.Transcoder, transcoder.TranscoderConfig, {"d_out": 7, "apply_b_dec_to_input": False}),
        (
            "skip transcoder",
            transcoder.SkipTranscoder,
            transcoder.SkipTranscoderConfig,
            {"d_out": D, "apply_b_dec_to_input": False},
        ),
        (
            "jumprelu transcoder",
            transcoder.JumpReLUTranscoder,
            transcoder.JumpReLUTranscoderConfig,
            {"d_out": 7, "apply_b_dec_to_input": False},
        ),
    ):

        def make(folder: Path, network=network, config=config, options=options):
            sae = scrambled(network(config(d_in=D, d_sae=WIDTH, **options)))
            sae.save_model(folder)
            return lambda x: (sae.encode(x), sae(x))

        yield f"saelens {name}", make

    yield "saelens", lambda folder: (lambda sae: lambda x: (sae.encode(x), sae(x)))(SAE.load_from_disk(folder))


def dictionary_learning() -> Iterator[Case]:
    # It pins an nnsight that this torch does not have, for capturing activations, which nothing here does.
    sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=None))  # pyright: ignore[reportArgumentType]
    from dictionary_learning import dictionary as theirs
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    classes = {
        "AutoEncoder": lambda: theirs.AutoEncoder(D, WIDTH),
        "AutoEncoderNew": lambda: theirs.AutoEncoderNew(D, WIDTH),
        "GatedAutoEncoder": lambda: theirs.GatedAutoEncoder(D, WIDTH),
        "JumpReluAutoEncoder": lambda: theirs.JumpReluAutoEncoder(D, WIDTH),
        "AutoEncoderTopK": lambda: AutoEncoderTopK(D, WIDTH, K),
        "BatchTopKSAE": lambda: BatchTopKSAE(D, WIDTH, K),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, WIDTH, K, [32, 64]),
    }
    for name, build in classes.items():

        def make(folder: Path, name=name, build=build):
            sae = scrambled(build())
            if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
                sae.threshold.fill_(0.8)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(sae.state_dict(), folder / "ae.pt")
            config = {"trainer": {"dict_class": name, "activation_dim": D, "dict_size": WIDTH, "k": K}, "buffer": {}}
            (folder / "config.json").write_text(json.dumps(config))
            return lambda x: (sae.encode(x), sae(x))

        yield f"dictionary_learning {name}", make

    def read(folder: Path):
        name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
        sae = classes[name]()
        sae.load_state_dict(torch.load(folder / "ae.pt"))
        return lambda x: (sae.encode(x), sae(x))

    yield "dictionary_learning", read


def sparsify() -> Iterator[Case]:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    def both(coder):
        def run(x):
            acts, indices, _ = coder.encode(x)
            dense = x.new_zeros(len(x), coder.num_latents).scatter(1, indices, acts)
            return dense, coder(x, x).sae_out

        return run

    for name, options in (
        ("topk", {}),
        ("groupmax", {"activation": "groupmax", "k": 6}),
        ("transcoder", {"transcode": True}),
        ("skip transcoder", {"transcode": True, "skip_connection": True}),
    ):

        def make(folder: Path, options=options):
            config = SparseCoderConfig(**{"num_latents": WIDTH, "k": K, "normalize_decoder": False, **options})
            coder = scrambled(SparseCoder(D, config, device="cpu", dtype=torch.float32))
            coder.save_to_disk(folder)
            return both(coder)

        yield f"sparsify {name}", make

    yield "sparsify", lambda folder: both(SparseCoder.load_from_disk(folder, device="cpu"))


def circuit_tracer() -> Iterator[Case]:
    # Only its transcoders, which need torch and safetensors; the package itself pins an old transformers.
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import (
        SingleLayerTranscoder,
        TranscoderSet,
        load_transcoder_set,
    )

    cpu = torch.device("cpu")
    for name, skip, threshold in (("relu", False, False), ("jumprelu", False, True), ("skip", True, True)):

        def make(folder: Path, skip=skip, threshold=threshold):
            activation = JumpReLU(torch.zeros(WIDTH)) if threshold else torch.nn.functional.relu
            one = SingleLayerTranscoder(D, WIDTH, activation, 0, skip_connection=skip, device=cpu, dtype=torch.float32)
            scrambled(one)
            TranscoderSet({0: one}, "mlp.hook_in", "hook_mlp_out").to_safetensors(str(folder))
            (folder / "config.yaml").write_text("model_kind: transcoder_set\n")
            return lambda x: (one.encode(x), one(x))

        yield f"circuit_tracer {name}", make

    def read(folder: Path):
        paths = {0: str(folder / "layer_0.safetensors")}
        one = load_transcoder_set(paths, "", "mlp.hook_in", "hook_mlp_out", device=cpu, dtype=torch.float32)[0]
        return lambda x: (one.encode(x), one(x))

    yield "circuit_tracer", read


def circuit_tracer_across(folder: Path, x: Tensor) -> Iterator[tuple[str, float]]:
    """Cross-layer transcoders of three layers, with and without thresholds, both ways; 0.5.0 writes no skips."""
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt

    rows = torch.stack([x, x.roll(1, 1), -x])  # [layer, row, d]
    cpu = torch.device("cpu")

    def apart(theirs: CrossLayerTranscoder, ours: dictionaries.CrossLayerTranscoder) -> float:
        with torch.no_grad():
            codes, inputs = theirs.encode(rows), rows.transpose(0, 1)
            y = theirs.decode(codes, rows)
            mine = ours.encode(inputs)
            return max(
                float((codes.transpose(0, 1) - mine.dense()).abs().max()),
                float((y.transpose(0, 1) - ours.decode(mine, inputs)).abs().max()),
            )

    for name, activation in (("relu", "relu"), ("jumprelu", "jump_relu")):
        theirs = CrossLayerTranscoder(3, WIDTH, D, activation, lazy_decoder=False, device=cpu, dtype=torch.float32)
        scrambled(theirs)
        there = folder / f"across-{name}"
        theirs.to_safetensors(str(there))
        ours = dictionaries.CrossLayerTranscoder.load(there)
        yield f"circuit_tracer across layers, {name}: theirs to ours", apart(theirs, ours)
        back = folder / f"across-{name}-back"
        ours.save(back, "circuit_tracer")
        read = load_clt(str(back), lazy_decoder=False, device=cpu, dtype=torch.float32)
        yield f"circuit_tracer across layers, {name}: ours to theirs", apart(read, ours)


LIBRARIES = {
    "sae_lens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "circuit_tracer": circuit_tracer,
}


def difference(theirs: tuple[Tensor, Tensor], ours: dictionaries.Dictionary, x: Tensor) -> float:
    codes, y = (tensor.detach() for tensor in theirs)
    return max(float((codes - ours.encode(x).dense()).abs().max()), float((y - ours(x)).abs().max()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=LIBRARIES, nargs="+", default=list(LIBRARIES), help="these libraries alone")
    chosen = parser.parse_args()
    missing = [library for library in chosen.only if importlib.util.find_spec(library) is None]
    for library in missing:
        print(f"  {library} is not installed here: left out")
    torch.manual_seed(0)
    x = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(1))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for library in (library for library in chosen.only if library not in missing):
            *cases, (name, read) = LIBRARIES[library]()
            for case, make in cases:
                folder = Path(temporary) / case.replace(" ", "-")
                run = make(folder)
                ours = dictionaries.load(folder)
                with torch.no_grad():
                    found[f"{case}: theirs to ours"] = difference(run(x), ours, x)
                    back = folder.with_name(folder.name + "-back")
                    ours.save(back, name)
                    found[f"{case}: ours to theirs"] = difference(read(back)(x), ours, x)
        if "circuit_tracer" in {*chosen.only} - {*missing}:
            with torch.no_grad():
                found |= dict(circuit_tracer_across(Path(temporary), x))
    for case, worst in found.items():
        print(f"  {case:<60} {worst:.2e}")
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps({"bench": "formats", "largest_difference": found}, indent=1) + "\n")
    return int(not found or max(found.values()) > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
