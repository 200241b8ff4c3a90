"""Networks whose weights were written, not trained: the circuit is known because we wrote it."""

from patchclamp.organisms.compiled.programs import PROGRAMS
from patchclamp.organisms.entry import Organism

_KNOWN = "circuit, edge by edge; which component holds which variable; the direction of every value"
_HOW = {"": "", "+rotated": ", in a rotated residual stream", "+superposed": ", in superposition"}
SUPERPOSED = ("previous-token", "induction", "histogram", "last-repeated", "sum-modulo", "bracket-depth")
ROTATED = ("reverse", "sort", "fraction", "indirect-object")
_NAMES = (
    *((program, "") for program in PROGRAMS),
    *((program, "+rotated") for program in PROGRAMS if program.name in ROTATED),
    *((program, "+superposed") for program in PROGRAMS if program.name in SUPERPOSED),
)

ORGANISMS = (
    Organism(
        name="compiled:hand-induction",
        summary="a GPT-2 of two layers whose induction circuit was written by hand, with a head that suppresses it",
        known="its three heads, the edges between them, their subspaces",
        module="patchclamp.organisms.compiled.hand_induction",
        written=True,
    ),
    *(
        Organism(
            name=f"compiled:{program.name}{suffix}",
            summary=f"a compiled program: {program.summary}{_HOW[suffix]}",
            known=_KNOWN,
            module="patchclamp.organisms.compiled.written",
            written=True,
        )
        for program, suffix in _NAMES
    ),
)
