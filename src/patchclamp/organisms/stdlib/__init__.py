"""`stdlib`: a language model of real text, the source of Python's standard library. See docs/stdlib.md."""

from patchclamp.organisms.entry import Organism

ORGANISMS = (
    Organism(
        name="stdlib",
        summary="a small Llama language model of the source of Python's standard library: real text, real structure",
        known="files held out; roles of every token of its text; brackets, indentation, new names; n-gram losses",
        module="patchclamp.organisms.stdlib.train",
    ),
)
