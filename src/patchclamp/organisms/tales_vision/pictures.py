"""Drawn faces of the known people of `tales`: 24 by 24 pixels, five features of four forms each.

    pictures.features("Mary Baker")                       # {"hat": 2, "ears": 0, "eyes": 3, "nose": 1, "mouth": 2}
    pictures.draw("Mary Baker")                           # Float[1, 24, 24]: the clean drawing
    pictures.draw("Mary Baker", rng=random.Random(0))     # shifted, faded, with noise

The fifth feature is decided by the other four (all five add up to a multiple of four), so that any two people differ in
two features at least, and no single feature tells who it is.
"""

import itertools
import random
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.organisms.tales import world

SIZE = 24
FEATURES = ("hat", "ears", "eyes", "nose", "mouth")
FORMS = 4
NOISE = 0.1  # standard deviation; ink is 1 and paper 0
SHIFT = 1.0  # the most that a picture is shifted, in pixels each way

# Where each form is drawn (row and column of its upper left corner), and its ink. Ears and eyes are mirrored.
_PLACES = {"hat": (1, 7), "ears": (9, 1), "eyes": (9, 7), "nose": (12, 10), "mouth": (17, 8)}
_GLYPHS = {
    "hat": (
        "....##....\n....##....\n...####...\n..######..\n.########.\n##########",
        "..........\n.########.\n.########.\n.########.\n.########.\n##########",
        "#...##...#\n##..##..##\n##..##..##\n###.##.###\n##########\n##########",
        "..........\n..........\n...####...\n..#....#..\n.#......#.\n#........#",
    ),
    "ears": (
        "....\n....\n....\n....\n....",
        "..##\n.###\n.###\n..##\n....",
        "#...\n##..\n###.\n####\n....",
        "..##\n..#.\n.##.\n##..\n##..",
    ),
    "eyes": ("###\n###\n###", "...\n###\n...", ".#.\n#.#\n.#.", "#.#\n.#.\n#.#"),
    "nose": ("....\n.##.\n.##.\n....", ".##.\n.##.\n.##.\n####", "#..#\n#..#\n.##.\n....", "####\n..#.\n.#..\n####"),
    "mouth": (
        "........\n########\n........\n........",
        "#......#\n.#....#.\n..####..\n........",
        "..####..\n.#....#.\n#......#\n........",
        ".######.\n##....##\n##....##\n.######.",
    ),
}


@cache
def _codes() -> dict[str, tuple[int, ...]]:
    """The forms of each person's features: fixed, whatever the seed of training."""
    words = [word for word in itertools.product(range(FORMS), repeat=len(FEATURES)) if sum(word) % FORMS == 0]
    people = [person.name for person in world.people()[0]]
    return dict(zip(people, random.Random(world.WORLD_SEED + 2).sample(words, len(people)), strict=True))


def people() -> list[str]:
    """Everybody who has a picture: the people of whom facts are known."""
    return list(_codes())


def features(name: str) -> dict[str, int]:
    """Which form each feature of a person has; LookupError for somebody who has no picture."""
    if name not in _codes():
        raise LookupError(f"there is no picture of '{name}': only of the people of whom facts are known")
    return dict(zip(FEATURES, _codes()[name], strict=True))


def face(forms: dict[str, int]) -> Float[np.ndarray, "24 24"]:
    """A clean drawing of any combination of forms, also of one that nobody has."""
    ink = np.zeros((SIZE, SIZE), dtype=np.float32)
    row, column = np.mgrid[:SIZE, :SIZE]
    radius = np.hypot((row - 14) / 8.5, (column - 11.5) / 7.5)
    ink[(radius < 1) & (radius > 0.86)] = 1.0
    for feature, form in forms.items():
        glyph = np.array([[character == "#" for character in line] for line in _GLYPHS[feature][form].split("\n")])
        top, left = _PLACES[feature]
        height, width = glyph.shape
        ink[top : top + height, left : left + width][glyph] = 1.0
        if feature in ("ears", "eyes"):
            right = SIZE - left - width
            ink[top : top + height, right : right + width][glyph[:, ::-1]] = 1.0
    return ink


def draw(name: str, rng: random.Random | None = None) -> Float[Tensor, "1 24 24"]:
    """A picture of a person: clean, or by `rng` shifted by fractions of a pixel, faded to no less than 0.6, with noise.

    No two pictures are equal, so that every new one is held out.
    """
    ink = face(features(name))
    if rng is not None:
        for axis in (0, 1):
            shift = rng.uniform(-SHIFT, SHIFT)
            ink = (1 - abs(shift)) * ink + abs(shift) * np.roll(ink, int(np.sign(shift)), axis)
        noise = np.random.default_rng(rng.getrandbits(64)).normal(0, NOISE, ink.shape)
        ink = (rng.uniform(0.6, 1.0) * ink + noise).astype(np.float32)
    return torch.from_numpy(ink)[None]
