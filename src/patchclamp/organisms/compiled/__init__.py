"""Networks whose weights were written, not trained: the circuit is known because we wrote it."""

from patchclamp.organisms.entry import Organism

ORGANISMS = (
    Organism(
        name="compiled:hand-induction",
        summary="a GPT-2 of two layers whose induction circuit was written by hand, with a head that suppresses it",
        known="its three heads, the edges between them, their subspaces",
        module="patchclamp.organisms.compiled.hand_induction",
        written=True,
    ),
)
