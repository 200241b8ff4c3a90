"""Train an organism and store it: `losses = fit(model, loss_at, out=..., recipe=..., ...)`, then `store(...)`.

Step k's data come from (recipe, k) alone. So a run that was interrupted goes on from its last checkpoint with the same
bits as one that was not (on the same machine, with the same number of threads).
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT = "checkpoint.pt"
SNAPSHOTS = "checkpoints"
LOG = "log.json"


def fit(
    model: nn.Module,
    loss_at: Callable[[int], Float[Tensor, ""]],
    *,
    out: str | Path,
    recipe: Any,
    steps: int,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float] | None = None,
    every: int = 200,
    snapshots: Collection[int] = (),
    measure: Callable[[int], Mapping[str, float]] | None = None,
    measure_every: int = 0,
    clip: float | None = 1.0,
    stop_at: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Train `model` in place by `steps` steps of `optimizer`, or go on from the checkpoint in `out`; the loss of every
    step.

    `recipe` is a frozen dataclass of all that decides the weights; a checkpoint of another recipe is refused with a
    ValueError. `rate` gives the learning rate of each step. `snapshots` are the numbers of steps after which the
    weights are kept, as half-precision `checkpoints/000512.safetensors` (0: before training). `measure` is asked after
    step 0, each `measure_every` steps and the last, and its rows are kept in `log.json`. `clip` bounds the norm of the
    gradient. `stop_at` ends early, as an interruption would.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    losses: list[float] = []
    log: list[dict[str, float]] = []
    before = 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=next(model.parameters()).device, weights_only=True)
        if state["recipe"] != _plain(recipe):
            raise ValueError(
                f"{checkpoint} is of another recipe: {state['recipe']}, not {_plain(recipe)}. Choose another folder."
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        losses, log, before = state["losses"], state["log"], state["seconds"]
    began = time.monotonic() - before
    last = min(steps, stop_at if stop_at is not None else steps)
    wanted = sorted(step for step in snapshots if step <= steps)

    def keep(done: int) -> None:
        """What is kept of the network after `done` steps: its weights, its measures."""
        if done in wanted:
            snapshot(model, out, done)
        if measure is not None and (done == steps or (measure_every and done % measure_every == 0)):
            log.append({"step": done, **measure(done)})

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        job = bar.add_task(out.name, total=steps, completed=len(losses))
        if not losses:
            keep(0)
        for step in range(len(losses), last):
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
            loss = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            losses.append(loss.item())
            done = step + 1
            keep(done)
            bar.update(job, completed=done, description=f"{out.name} loss {losses[-1]:.4g}")
            if done % every == 0 or done == last:
                state = {
                    "recipe": _plain(recipe),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "losses": losses,
                    "log": log,
                    "seconds": time.monotonic() - began,
                }
                torch.save(state, checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)
                if log:
                    (out / LOG).write_text(_lines(log))
    return losses


def snapshot(model: nn.Module, out: Path, done: int) -> Path:
    """Keep the weights after `done` steps, in half precision, as a file that `pc.load("organism:NAME@STEP")` reads."""
    path = out / SNAPSHOTS / f"{done:06d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(_half(model), path)
    return path


def store(
    model: Any,
    out: str | Path,
    recipe: Any,
    losses: Sequence[float],
    *,
    tokenizer: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the Hugging Face folder of a trained `PreTrainedModel`, and `recipe.json` beside it.

    Weights are stored in half precision; the configuration says float32, which is how they load. `recipe.json` has the
    recipe, the number of parameters, the mean loss of the last 50 steps, the seconds of training, and what `extra`
    says.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, state_dict=_half(model))
    # A part that was loaded says from where: a path of this machine, which is nobody's business.
    config = json.loads(
        (out / "config.json").read_text(),
        object_hook=lambda part: {key: value for key, value in part.items() if key != "_name_or_path"},
    )
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    checkpoint = out / CHECKPOINT
    seconds = torch.load(checkpoint, weights_only=True)["seconds"] if checkpoint.exists() else 0.0
    tail = losses[-50:]
    record = _plain(recipe) | {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": float(f"{sum(tail) / len(tail):.4g}"),
        "seconds": round(seconds),
        **(extra or {}),
    }
    (out / "recipe.json").write_text(json.dumps(record, indent=1) + "\n")


def _half(model: nn.Module) -> dict[str, Tensor]:
    """Half-precision copies; whole numbers (counters, positions) stay as they are."""
    state = model.state_dict()
    return {
        name: (x.detach().half() if x.is_floating_point() else x.detach()).cpu().clone() for name, x in state.items()
    }


def _plain(recipe: Any) -> dict[str, Any]:
    """The recipe as JSON would give it back."""
    return json.loads(json.dumps(asdict(recipe)))


def _lines(rows: Sequence[Mapping[str, float]]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
