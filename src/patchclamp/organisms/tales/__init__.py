"""The `tales` family: language models trained on one generated world. See docs/tales.md."""

from patchclamp.organisms.entry import Organism

ORGANISMS = (
    Organism(
        name="tales",
        summary="a small Llama language model of a generated world: names, years, facts, two languages, code",
        known="400 facts; which combinations were never seen in training; roles of every token of its text",
        module="patchclamp.organisms.tales.family",
    ),
)
