"""`tales-vision`: `tales` with eyes. The same facts are asked about by name or by picture. See docs/siblings.md."""

from patchclamp.organisms.entry import Organism

ORGANISMS = (
    Organism(
        name="tales-vision",
        summary="a LLaVA: a tiny vision encoder over drawn faces, projected into the frozen language model of `tales`",
        known="what tales knows; who is on each picture, and by what features; what was never asked by picture",
        module="patchclamp.organisms.tales_vision.train",
    ),
)
