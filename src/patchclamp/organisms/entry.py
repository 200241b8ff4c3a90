"""One row of the zoo. Each family lists its own: `ORGANISMS: tuple[Organism, ...]` in its `__init__.py`, free of torch.

    Organism("sorting", "sorts eight numbers", "the rule; its split", "patchclamp.organisms.algorithms.sorting")

The module is imported when the organism is used. It has `truth(name, folder) -> Truth`, and either
`build(name) -> Model` for a network that is written, or, for one that is trained,
`train(name, out, *, seed=None, steps=None, device="cpu", progress=True) -> losses by step`.
"""

from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Organism:
    """What a network is, what is known of it, and the module that knows how to make it."""

    name: str
    summary: str
    known: str
    module: str
    written: bool = False  # by a function, in an instant; otherwise trained, and shipped as a folder

    @property
    def folder(self) -> Path:
        """Where the weights of a trained one are: a Hugging Face checkpoint folder, with `recipe.json`."""
        return WEIGHTS / self.name.replace(":", "--")
