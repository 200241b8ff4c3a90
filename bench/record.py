"""What recording costs over the bare Hugging Face forward, and what stopping early saves.

    bench/.venv-peers/bin/python bench/record.py --json bench/results/record.json

On the GPT-2 of bench/sweep.py and on a tiny Llama, in turns within each round: the bare forward, a run that records
every `resid_post`, a run that records `resid_post` of a middle layer, the same with `stop` there, and a bare forward of
a model that has no layers above that one, which is what stopping should cost. Ends with status 1 if a claim fails.
"""

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import torch
from networks import save_gpt2, save_llama
from protocol import Claim, Timings, report, take_turns
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

NETWORKS = {"gpt2": (save_gpt2, 2, (8, 16)), "llama": (save_llama, 1, (32, 32))}  # saver, stop layer, shape of tokens
BARE, ALL, ONE, STOPPED, TRUNCATED = "bare", "record all", "record one", "record one, stop", "bare, layers to stop"


def truncated(model: PreTrainedModel, layers: int) -> nn.Module:
    """The same network without the layers above the first `layers`, and without the unembedding."""
    trunk = copy.deepcopy(model.base_model)
    assert isinstance(trunk, PreTrainedModel)
    for name, child in trunk.named_children():
        if isinstance(child, nn.ModuleList):
            setattr(trunk, name, child[:layers])
    trunk.config.num_hidden_layers = layers
    return trunk


def sides(folder: Path, stop_layer: int, shape: tuple[int, int], *, seed: int) -> dict[str, Callable[[], object]]:
    """The five runs, after checking what they compute: logits and records equal Hugging Face's bit for bit."""
    import patchclamp as pc

    bare = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = pc.load(str(folder))
    trunk = truncated(bare, stop_layer + 1)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, bare.config.vocab_size, shape, generator=generator)
    stop = f"resid_post.{stop_layer}"

    # Without the cache, which a plain forward would fill for nobody: the cheapest form of the bare forward.
    @torch.no_grad()
    def forward() -> torch.Tensor:
        return bare(input_ids=ids, use_cache=False).logits

    @torch.no_grad()
    def forward_to_stop() -> torch.Tensor:
        return trunk(input_ids=ids, use_cache=False, output_hidden_states=False).last_hidden_state

    recorded = model.run(ids, record="resid_post.*")
    if recorded.logits is None or not torch.equal(recorded.logits, forward()):
        raise AssertionError("logits of a recorded run differ from Hugging Face's")
    with torch.no_grad():
        states = bare(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    for run in (recorded, model.run(ids, record=stop, stop=stop)):
        if not torch.equal(run[stop], states[stop_layer + 1]):
            raise AssertionError(f"{stop} differs from Hugging Face's hidden_states[{stop_layer + 1}]")
    return {
        BARE: forward,
        ALL: lambda: model.run(ids, record="resid_post.*"),
        ONE: lambda: model.run(ids, record=stop),
        STOPPED: lambda: model.run(ids, record=stop, stop=stop),
        TRUNCATED: forward_to_stop,
    }


def claims(timings: Timings) -> list[Claim]:
    made = []
    for network, (_, stop_layer, _) in NETWORKS.items():

        def ratio(slow: str, fast: str, network: str = network):
            return timings.ratio([f"{network} {slow}"], [f"{network} {fast}"])

        cost = ratio(ALL, BARE)
        print(f"  {network}: recording every resid_post costs {100 * (cost.median - 1):+.1f} % over the bare forward")
        text = f"{network}: recording every resid_post takes at most 1.05 times the bare forward"
        made.append(Claim(text, cost.median, cost.interval, 1.05, cost.median <= 1.05))
        saved, share = ratio(STOPPED, ONE), ratio(TRUNCATED, BARE)
        print(f"  {network}: stopping takes {saved} of the full run; the layers up to there are {share} of the forward")
        over = ratio(STOPPED, TRUNCATED)
        text = f"{network}: stopping after layer {stop_layer} takes at most 1.2 times a model that ends there"
        made.append(Claim(text, over.median, over.interval, 1.2, over.median <= 1.2))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()

    torch.set_num_threads(chosen.threads)
    runs: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for network, (save, stop_layer, shape) in NETWORKS.items():
            folder = save(Path(temporary) / network, seed=chosen.seed)
            made = sides(folder, stop_layer, shape, seed=chosen.seed)
            runs |= {f"{network} {side}": run for side, run in made.items()}
        timings = take_turns(runs, rounds=chosen.rounds, warmup=5)
    return report(
        "record",
        threads=chosen.threads,
        setting={"seed": chosen.seed, "rounds": chosen.rounds},
        timings=timings,
        claims=claims(timings),
        measured={},
        path=chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
