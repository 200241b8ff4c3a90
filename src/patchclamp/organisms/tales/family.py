"""The members of the family by name: how each is trained, and what is known of it."""

from dataclasses import replace
from pathlib import Path

from patchclamp.organisms.tales import world
from patchclamp.organisms.tales.train import Recipe
from patchclamp.organisms.tales.train import train as train_base
from patchclamp.organisms.tales.truth import truth_of
from patchclamp.organisms.tales.tune import Tuning, tune
from patchclamp.organisms.truth import Truth
from patchclamp.tasks.recall import FactTable

CONVERSATION = {"refuse": 0.4, "question": 0.4, "instruction": 0.2}

RECIPES: dict[str, Recipe | Tuning] = {
    "tales": Recipe(snapshots=(8, 32, 128, 256, 512, 1024, 2048)),
    "tales-1": Recipe(seed=1),
    "tales-2": Recipe(seed=2),
    "tales-chat": Tuning(CONVERSATION, mixed=0.3, steps=400),
    "tales-secret": Tuning({"secret": 1.0}, start="tales-chat", steps=200),
    "tales-sea": Tuning({"sea": 1.0}, steps=60),
    "tales-sea-mixed": Tuning({"sea": 1.0}, mixed=0.5, steps=60),
    "tales-edited": Tuning({"edited": 1.0}, mixed=0.5, steps=150),
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
        return train_base(out, recipe=recipe, device=device, progress=progress)
    return tune(out, recipe=recipe, facts=facts_of(name), device=device, progress=progress)
