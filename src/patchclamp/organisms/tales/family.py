"""The members of the family by name: what is known of each, and how each is trained."""

from pathlib import Path

from patchclamp.organisms.tales.train import train as train_base
from patchclamp.organisms.tales.truth import truth_of
from patchclamp.organisms.truth import Truth


def truth(name: str, folder: Path) -> Truth:
    return truth_of(folder)


def train(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[float]:
    return train_base(out, seed=seed or 0, steps=steps, device=device, progress=progress)
