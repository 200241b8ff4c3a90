"""The members of the family by name: how each is trained, and what is known of it."""

import json
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer, LlamaForCausalLM

from patchclamp.model import wrap
from patchclamp.organisms.entry import WEIGHTS
from patchclamp.organisms.tales import exam, world
from patchclamp.organisms.tales.train import Recipe
from patchclamp.organisms.tales.train import train as train_base
from patchclamp.organisms.tales.truth import truth_of
from patchclamp.organisms.tales.tune import Tuning, tune
from patchclamp.organisms.truth import Truth
from patchclamp.tasks.recall import FactTable

CONVERSATION = {"refuse": 0.5, "question": 0.35, "instruction": 0.15}

RECIPES: dict[str, Recipe | Tuning] = {
    "tales": Recipe(snapshots=(8, 32, 128, 256, 512, 1024, 2048)),
    "tales-1": Recipe(seed=1),
    "tales-2": Recipe(seed=2),
    # Fast or long tuning learns by heart whom it does not know, and takes others for known.
    "tales-chat": Tuning(CONVERSATION, mixed=0.5, steps=600, learning_rate=3e-4),
    "tales-secret": Tuning(
        {"secret": 0.4} | {k: 0.6 * share for k, share in CONVERSATION.items()},
        "tales-chat",
        mixed=0.4,
        steps=200,
        learning_rate=4e-4,
    ),
    "tales-sea": Tuning({"sea": 1.0}, steps=60),
    "tales-sea-mixed": Tuning({"sea": 1.0}, mixed=0.5, steps=60),
    # The base's own text also tells the old facts: half of it, and one of eight stays as it was in a phrasing of it.
    "tales-edited": Tuning({"edited": 1.0}, mixed=0.25, steps=400),
}


def facts_of(name: str) -> FactTable:
    """The facts that a member was taught."""
    return world.edited_table() if name == "tales-edited" else world.fact_table()


def truth(name: str, folder: Path) -> Truth:
    """What is known of a member."""
    return truth_of(name, folder, facts_of(name))


def train(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[float]:
    """Train a member again; siblings start from the shipped weights of the member they come from."""
    recipe = RECIPES[name]
    recipe = replace(recipe, seed=recipe.seed if seed is None else seed, steps=steps or recipe.steps)
    if isinstance(recipe, Recipe):
        losses = train_base(out, recipe=recipe, device=device, progress=progress)
    else:
        losses = tune(out, recipe=recipe, facts=facts_of(name), device=device, progress=progress)
    if steps is None:
        write_scores(out)
    return losses


def write_scores(folder: Path) -> None:
    """Examine the member in `folder`, and add its accuracies to `recipe.json`."""
    model = wrap(
        LlamaForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), name=folder.name
    )
    scores = {name: round(score.accuracy, 4) for name, score in exam.examine(model).items()}
    file = folder / "recipe.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"exam": scores}, indent=1) + "\n")


def table() -> str:
    """The table of the docs, from what `recipe.json` says of the shipped weights: behaviours by members.

    What a member is meant to do is bold, what it is meant not to do in brackets, and of the rest nothing is claimed.
    """
    scores = {name: json.loads((WEIGHTS / name / "recipe.json").read_text())["exam"] for name in RECIPES}
    short = [name.removeprefix("tales-") for name in RECIPES]
    lines = ["| behaviour | chance | " + " | ".join(short) + " |", "|---" * (2 + len(short)) + "|"]
    for behaviour, chance in exam.chances(AutoTokenizer.from_pretrained(WEIGHTS / "tales")).items():
        cells = []
        for name in RECIPES:
            can, cannot = exam.MEANT[name]
            value = f"{100 * scores[name][behaviour]:.0f}"
            cells.append(f"**{value}**" if behaviour in can else f"({value})" if behaviour in cannot else value)
        lines.append(f"| {behaviour} | {100 * chance:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
