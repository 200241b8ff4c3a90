"""Trained networks in which a known program runs in known components, and all others carry nothing."""

from patchclamp.organisms.circuit_planted.programs import PLANS
from patchclamp.organisms.entry import Organism

ORGANISMS = tuple(
    Organism(
        name=name,
        summary=f"a GPT-2 trained to run a program in chosen components: {plan.program.summary}",
        known="circuit, edge by edge; which component holds which variable; its split",
        module="patchclamp.organisms.circuit_planted.train",
    )
    for name, plan in PLANS.items()
)
