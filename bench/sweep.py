"""Exact patching sweeps against TransformerLens 4.3 and against the naive loop: the same two tables, timed in turns.

    bench/.venv-peers/bin/python bench/sweep.py --json bench/results/sweep.json

Tables: `resid_pre` by layer and position (96 patches), and all heads' `z` at all positions (36 patches), for 8 prompts
of 16 tokens on a GPT-2 of 6 layers and width 384. Every value is the mean logit difference of the corrupted run with
one activation of the clean run put in. Ends with status 1 if two tables differ by more than 1e-4 or a claim fails.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"  # a progress bar is no part of the peer's work

import torch
from jaxtyping import Float, Int
from networks import save_gpt2
from protocol import Claim, Timings, report, take_turns
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2LMHeadModel

TOLERANCE = 1e-4
TABLES = ("resid_pre", "heads")
SIDES = ("transformer_lens", "naive", "patchclamp")

Table = Float[torch.Tensor, "layer pos_or_head"]


@dataclass(frozen=True)
class Prompts:
    """Clean and corrupted prompts that differ in one token, with a right and a wrong answer to each."""

    clean: Int[torch.Tensor, "prompt pos"]
    corrupt: Int[torch.Tensor, "prompt pos"]
    answers: Int[torch.Tensor, " prompt"]
    wrong: Int[torch.Tensor, " prompt"]

    def logit_difference(self, logits: Float[torch.Tensor, "prompt pos vocab"]) -> Float[torch.Tensor, ""]:
        rows = torch.arange(len(self.answers))
        return (logits[rows, -1, self.answers] - logits[rows, -1, self.wrong]).mean()


def random_prompts(*, n: int = 8, length: int = 16, differ_at: int = 5, vocabulary: int = 50257, seed: int) -> Prompts:
    """Random tokens, none of them the special token 0; clean and corrupted agree except at `differ_at`."""
    generator = torch.Generator().manual_seed(seed)

    def another(than: torch.Tensor) -> torch.Tensor:
        steps = torch.randint(1, vocabulary - 1, than.shape, generator=generator)
        return 1 + (than - 1 + steps) % (vocabulary - 1)

    clean = torch.randint(1, vocabulary, (n, length), generator=generator)
    corrupt = clean.clone()
    corrupt[:, differ_at] = another(clean[:, differ_at])
    answers = torch.randint(1, vocabulary, (n,), generator=generator)
    return Prompts(clean, corrupt, answers, another(answers))


def transformer_lens(folder: Path, prompts: Prompts) -> dict[str, Callable[[], Table]]:
    """TransformerLens' own helpers on its bridge, which keeps the Hugging Face weights as they are.

    The clean cache is made here, outside the timing: the helpers take it as an argument.
    """
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(folder), device="cpu")
    model.eval()
    names = [
        f"blocks.{layer}.{hook}" for layer in range(model.cfg.n_layers) for hook in ("hook_resid_pre", "attn.hook_z")
    ]
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts.clean, names_filter=names)

    def run(helper: Callable[..., torch.Tensor]) -> Table:
        with torch.no_grad():
            return helper(model, prompts.corrupt, cache, prompts.logit_difference)

    return {
        "resid_pre": lambda: run(patching.get_act_patch_resid_pre),
        "heads": lambda: run(patching.get_act_patch_attn_head_out_all_pos),
    }


def naive(folder: Path, prompts: Prompts) -> dict[str, Callable[[], Table]]:
    """One patch, one forward of the plain Hugging Face model with a hook in it: the definition, and the floor."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    blocks = list(model.transformer.h)
    d_head = model.config.n_embd // model.config.n_head
    projections = [block.get_submodule("attn.c_proj") for block in blocks]
    targets: dict[str, list[nn.Module]] = {"resid_pre": blocks, "heads": projections}

    def clean_inputs(modules: list[nn.Module]) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        handles = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())) for m in modules]
        with torch.no_grad():
            model(prompts.clean)
        for handle in handles:
            handle.remove()
        return seen

    def patched(module: nn.Module, clean: torch.Tensor, where: tuple[slice, ...]) -> torch.Tensor:
        def put(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            activation = args[0].clone()
            activation[where] = clean[where]
            return (activation, *args[1:])

        handle = module.register_forward_pre_hook(put)
        try:
            with torch.no_grad():
                return prompts.logit_difference(model(prompts.corrupt).logits)
        finally:
            handle.remove()

    every = slice(None)
    where = {
        "resid_pre": [(every, slice(pos, pos + 1)) for pos in range(prompts.clean.shape[1])],
        "heads": [(every, every, slice(h * d_head, (h + 1) * d_head)) for h in range(model.config.n_head)],
    }
    clean = {table: clean_inputs(modules) for table, modules in targets.items()}

    def run(table: str) -> Table:
        rows = zip(targets[table], clean[table], strict=True)
        return torch.stack([torch.stack([patched(module, inputs, w) for w in where[table]]) for module, inputs in rows])

    return {table: lambda table=table: run(table) for table in TABLES}


def ours(folder: Path, prompts: Prompts) -> dict[str, Callable[[], Table]]:
    """The public face of this package; its clean and corrupted runs are inside the timing.

    The certificate, which is made once for a model, is not.
    """
    import patchclamp as pc

    model = pc.load(str(folder))
    model.certify()
    task = pc.Task.from_tokens(
        clean=prompts.clean, corrupt=prompts.corrupt, answers=prompts.answers, wrong=prompts.wrong
    )

    def run(sites: str, positions: str, dims: tuple[str, str]) -> Table:
        effects = pc.patching.sweep(
            model, task, sites, positions=positions, metric=pc.metrics.logit_difference, normalise=False
        )
        return torch.as_tensor(effects.transpose(*dims).values)

    return {
        "resid_pre": lambda: run("resid_pre.*", "each", ("layer", "pos")),
        "heads": lambda: run("z.*.*", "all", ("layer", "head")),
    }


LOAD: Mapping[str, Callable[[Path, Prompts], dict[str, Callable[[], Table]]]] = {
    "transformer_lens": transformer_lens,
    "naive": naive,
    "patchclamp": ours,
}


def compare_tables(sides: Mapping[str, Mapping[str, Callable[[], Table]]]) -> dict[str, dict[str, float]]:
    """Largest differences between every two sides' tables, how far the values of each lie apart, and the work in them.

    The work is what torch counts in matrix products and attention: it does not depend on the machine. A spread that is
    not far above the tolerance would make agreement worthless, so it is an error.
    """
    measured: dict[str, dict[str, float]] = {}
    for table in TABLES:
        made, work = {}, {}
        for side, run in sides.items():
            with FlopCounterMode(display=False) as counter:
                made[side] = run[table]().double()
            work[side] = counter.get_total_flops() / 1e9
        first = next(iter(made))
        spread = float(made[first].max() - made[first].min())
        if spread < 1000 * TOLERANCE:
            raise AssertionError(f"the values of {table} spread over {spread:.2g} only; agreement would say nothing")
        measured[table] = {"spread": spread}
        measured[table] |= {f"{side} GFLOP": count for side, count in work.items()}
        counts = ", ".join(f"{side} {count:.4g}" for side, count in work.items())
        print(f"{table}: {tuple(made[first].shape)}, values spread over {spread:.3g}; GFLOP: {counts}")
        for i, one in enumerate(made):
            for other in list(made)[i + 1 :]:
                if made[one].shape != made[other].shape:
                    raise AssertionError(f"{table}: {one} {made[one].shape}, {other} {made[other].shape}")
                difference = float((made[one] - made[other]).abs().max())
                measured[table][f"{one} - {other}"] = difference
                print(f"  max |{one} - {other}| = {difference:.2g}")
                if not difference <= TOLERANCE:
                    raise AssertionError(f"{table}: {one} and {other} differ by {difference:.2g} > {TOLERANCE}")
    return measured


def speed_claims(timings: Timings, sides: tuple[str, ...]) -> tuple[list[Claim], dict[str, object]]:
    """Ratios of every side to ours, per table and together; the claim is about both tables together."""
    if "patchclamp" not in sides:
        return [], {}
    ratios: dict[str, object] = {}
    claims: list[Claim] = []
    for peer in (side for side in sides if side != "patchclamp"):
        for tables in ((TABLES[0],), (TABLES[1],), TABLES):
            label = " + ".join(tables)
            ratio = timings.ratio([f"{peer} {t}" for t in tables], [f"patchclamp {t}" for t in tables])
            cpu = timings.ratio([f"{peer} {t}" for t in tables], [f"patchclamp {t}" for t in tables], cpu=True)
            ratios[f"{peer} / patchclamp, {label}"] = {"elapsed": ratio.median, "processor": cpu.median}
            print(f"  {peer} / patchclamp, {label}: elapsed {ratio}, processor time {cpu}")
            if peer == "transformer_lens" and tables == TABLES:
                text = "both sweeps together at least 12 times as fast as TransformerLens"
                claims.append(Claim(text, ratio.median, ratio.interval, 12.0, ratio.median >= 12.0))
    return claims, {"ratios": ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="which to run (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()

    torch.set_num_threads(chosen.threads)
    prompts = random_prompts(seed=chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        save_gpt2(Path(folder), seed=chosen.seed)
        sides = {side: LOAD[side](Path(folder), prompts) for side in chosen.sides}
        differences = compare_tables(sides)  # also everybody's warm-up
        plain = GPT2LMHeadModel.from_pretrained(folder).eval()

        def forward() -> None:
            with torch.no_grad():
                plain(prompts.corrupt)

        runs: dict[str, Callable[[], object]] = {"plain forward": forward}
        runs |= {f"{side} {table}": sides[side][table] for table in TABLES for side in sides}
        timings = take_turns(runs, rounds=chosen.rounds, warmup=0)

    claims, ratios = speed_claims(timings, tuple(sides))
    setting = {"seed": chosen.seed, "rounds": chosen.rounds, "sides": list(sides), "tolerance": TOLERANCE}
    return report(
        "sweep",
        threads=chosen.threads,
        setting=setting,
        timings=timings,
        claims=claims,
        measured={"tables": differences, **ratios},
        path=chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
