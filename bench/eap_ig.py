"""EAP and EAP-IG against the reference implementation, hannamw/EAP-IG, on a random small GPT-2: the same edges' scores.

    git clone https://github.com/hannamw/EAP-IG
    python bench/eap_ig.py --reference EAP-IG [--steps 5] [--json FILE]

The environment needs a TransformerLens before 4 beside this package (bench/.venv-dictionaries). The reference is run as
it is; three things are put around it: its literal device 'cuda' is the CPU, its tokenizer is handed the ids, and its
drawing library is not loaded. Its rule is the left end of each step (of the version of 2025; "right" in later ones),
its metric a loss, and position embeddings are no node of its graph. Fails where a score differs by more than 1e-3 of
the largest.
"""

import argparse
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import patchclamp as pc
from patchclamp.sites import Site

TOLERANCE = 1e-3
LAYERS, HEADS, WIDTH = 3, 4, 32


def network() -> GPT2LMHeadModel:
    """A GPT-2 with random weights, large enough that its attention is no mean."""
    config = GPT2Config(vocab_size=97, n_positions=32, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(config).eval()
    for parameter in hf.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return hf


def prompts(n: int = 6, length: int = 9) -> pc.Task:
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(97, (n, length), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 2] = (clean[:, 2] + 11) % 97
    corrupt[:, 5] = (clean[:, 5] + 29) % 97
    return pc.Task.from_tokens(clean=clean, corrupt=corrupt, answers=torch.arange(n), wrong=torch.arange(n) + 40)


def hooked(hf: GPT2LMHeadModel) -> Any:
    """The same weights in TransformerLens, with the inputs of heads and MLPs split as the reference wants."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=32,
        d_head=WIDTH // HEADS,
        n_heads=HEADS,
        d_mlp=4 * WIDTH,
        d_vocab=97,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=1e-5,
        device="cpu",
        use_split_qkv_input=True,
        use_attn_result=True,
        use_hook_mlp_in=True,
    )
    model = HookedTransformer(config)
    model.load_state_dict(convert_gpt2_weights(hf, config), strict=False)
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    model.set_use_hook_mlp_in(True)
    return model


class OnCpu(types.ModuleType):
    """`torch`, for which 'cuda' is the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *shape: Any, device: Any = None, **rest: Any) -> torch.Tensor:
        return torch.zeros(*shape, device="cpu", **rest)


def reference(folder: Path, task: pc.Task, hf: GPT2LMHeadModel, steps: int) -> dict[str, torch.Tensor]:
    """[sender, reader] scores of both methods, as the reference indexes them."""
    sys.path.insert(0, str(folder / "src"))
    sys.modules.setdefault("pygraphviz", types.ModuleType("pygraphviz"))
    attribute, graphs = (importlib.import_module(f"eap.{name}") for name in ("attribute", "graph"))
    attribute.torch = OnCpu()

    def tokens(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        return ids, torch.ones_like(ids), torch.full((len(ids),), ids.shape[1]), ids.shape[1]

    def loss(logits: torch.Tensor, clean: torch.Tensor, lengths: torch.Tensor, label: pc.Task) -> torch.Tensor:
        return -pc.metrics.logit_difference(label.at_answer(logits), label).sum()

    attribute.tokenize_plus = tokens
    model, batches = hooked(hf), [(task.clean, task.corrupt, task)]
    ids_agree = torch.allclose(model(task.clean), hf(task.clean).logits, atol=1e-3)
    if not ids_agree:
        raise AssertionError("TransformerLens and transformers do not agree about these weights")
    graph = graphs.Graph.from_model(model)
    return {
        "eap": attribute.get_scores_eap(model, graph, batches, loss, quiet=True),
        "eap-ig": attribute.get_scores_eap_ig(model, graph, batches, loss, steps=steps, quiet=True),
    }


def sender_index(site: Site) -> int:
    if site.layer is None:
        return 0
    return 1 + site.layer * (HEADS + 1) + (HEADS if site.unit is None else site.unit)


def reader_index(site: Site) -> int:
    if site.layer is None:
        return -1
    first = site.layer * (3 * HEADS + 1)
    return first + (3 * HEADS if site.unit is None else "qkv".index(site.kind) * HEADS + site.unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a clone of hannamw/EAP-IG")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rule", choices=("left", "right"), default="left")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    hf, task = network(), prompts()
    theirs = reference(asked.reference, task, hf, asked.steps)
    model = pc.wrap(hf, name="random GPT-2")
    ours = {
        "eap": pc.circuits.eap(model, task),
        "eap-ig": pc.circuits.eap_ig(model, task, steps=asked.steps, rule=asked.rule),
    }
    said = {}
    for name, scores in ours.items():
        edges = [edge for edge in scores.graph.edges if edge[0].kind != "pos_embed"]
        mine = torch.stack([scores.values[scores.graph.index[edge]] for edge in edges])
        own = torch.stack([theirs[name][sender_index(a), reader_index(b)] for a, b in edges]).detach()
        size = float(own.abs().max())
        said[name] = {"edges": len(edges), "largest": size, "largest difference": float((mine - own).abs().max())}
    print(json.dumps(said, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(said, indent=1))
    worst = max(row["largest difference"] / row["largest"] for row in said.values())
    if not worst <= TOLERANCE:
        raise AssertionError(f"scores differ by {worst:.2g} of the largest")


if __name__ == "__main__":
    main()
