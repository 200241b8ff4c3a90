"""Exact edge patching against one forward pass for each edge: the same numbers, timed in turns.

    python bench/edges.py [--model organism:tales] [--prompts 8] [--rounds 2] [--json FILE]

The loop is the definition: a whole run of the network for every edge in which one reader takes the clean stream less
what the sender added, plus what it adds on the corrupted prompt. It knows what it needs (one recording of each side, a
partial pass that makes the reader's input), and stops at no edge that carries the same on both sides. Ratios are of
processor time of one thread.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import patchclamp as pc
from patchclamp.circuits.graph import Graph
from patchclamp.sites import Site


def sum_of(sender: Site) -> Site:
    """What the sender adds to the stream."""
    return Site("head_out", sender.layer, sender.unit) if sender.kind == "z" else sender


def stream_of(model: pc.Model, reader: Site) -> Site:
    """The stream in front of the reader's norm."""
    if reader.kind == "logits":
        return Site("resid_post", model.n_layers - 1)
    return Site("resid_mid" if reader.kind == "mlp_in" else "resid_pre", reader.layer)


def loop(model: pc.Model, task: pc.Task, graph: Graph) -> torch.Tensor:
    """What the metric loses without each edge, edge by edge: for blocks of attention and then an MLP."""
    readers = {stream_of(model, reader) for reader in graph.readers}
    senders = {sum_of(sender).whole for sender in graph.senders}
    clean = model.run(task.clean, record=[*readers, *senders], attention_mask=task.mask)
    corrupt = model.run(task.corrupt, record=[*senders], attention_mask=task.mask)
    base = pc.metrics.logit_difference(task.at_answer(clean.logits), task).mean()
    lost = torch.zeros(len(graph.edges))
    for number, (sender, reader) in enumerate(graph.edges):
        stream, share = stream_of(model, reader), sum_of(sender)
        changed = clean[stream] - clean[share] + corrupt[share]
        do = pc.patch(stream, changed)
        made = model.run(task.clean, do=do, record=reader, stop=reader, attention_mask=task.mask)[reader]
        logits = made
        if reader.kind != "logits":
            logits = model.run(task.clean, do=pc.patch(reader, made), attention_mask=task.mask).logits
        lost[number] = base - pc.metrics.logit_difference(task.at_answer(logits), task).mean()
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:tales")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = pc.load(asked.model)
    model.certify()
    task = pc.tasks.ioi(model, n=asked.prompts, seed=0)
    graph = Graph.of(model)
    sides = {"loop": lambda: loop(model, task, graph), "patchclamp": lambda: pc.circuits.exact(model, task).values}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values = {}
    for _ in range(asked.rounds):
        for name, run in sides.items():
            begun = time.process_time()
            values[name] = run()
            seconds[name].append(time.process_time() - begun)
    gap = float((values["loop"] - values["patchclamp"]).abs().max())
    ratios = [slow / fast for slow, fast in zip(seconds["loop"], seconds["patchclamp"], strict=True)]
    said = {"edges": len(graph.edges), "prompts": len(task), "seconds": seconds, "ratios": ratios, "largest gap": gap}
    print(json.dumps(said, indent=1))
    if gap > 1e-3:
        raise AssertionError(f"the two tables differ by {gap:.2g}")
    if asked.json:
        asked.json.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
