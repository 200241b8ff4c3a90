"""Networks trained on algorithms whose answer is known: `pc.load("organism:modular-addition")` and its neighbours.

One file for each algorithm, with its data, its recipe and what is known of it; `transformer` builds the transformers,
`fourier` and `finite_groups` have the mathematics. The organisms and their figures are in docs/algorithms.md.
"""

from patchclamp.organisms.entry import Organism

_HERE = "patchclamp.organisms.algorithms"
_GROUPS = {"s4": "S4", "a4": "A4", "a5": "A5", "c30": "the cyclic group of 30", "d12": "the dihedral group of 24"}
_SEEDS = {"s4": 3, "a4": 2, "a5": 2, "c30": 2, "d12": 2}


def _group(name: str, seed: int) -> Organism:
    return Organism(
        name=f"groups:{name}" + (f"-{seed}" if seed else ""),
        summary=f"an MLP that composes elements of {_GROUPS[name]}, seed {seed}",
        known="the group's table and characters; how much each irrep explains of its logits; its split",
        module=f"{_HERE}.groups",
    )


ORGANISMS: tuple[Organism, ...] = (
    Organism(
        name="modular-addition",
        summary="a transformer of one layer that adds modulo 113, with its training through grokking",
        known="its key frequencies, as directions; its split",
        module=f"{_HERE}.modular_addition",
    ),
    Organism(
        name="modular-addition:59",
        summary="the same modulo 59",
        known="its key frequencies, as directions; its split",
        module=f"{_HERE}.modular_addition",
    ),
    *(_group(name, seed) for name, seeds in _SEEDS.items() for seed in range(seeds)),
    Organism(
        name="groups:s4-random",
        summary="the control of groups: the same MLP on a random table of 24 by 24",
        known="that it knows its training pairs by heart and nothing else",
        module=f"{_HERE}.groups",
    ),
    Organism(
        name="induction",
        summary="two layers of attention alone that continue repeated tokens, with the phase change of its training",
        known="its previous-token heads and induction heads; the rule; the phase change",
        module=f"{_HERE}.induction",
    ),
    Organism(
        name="sorting",
        summary="a transformer of two layers that sorts eight numbers below 32",
        known="the rule; which lists were held out",
        module=f"{_HERE}.sorting",
    ),
    Organism(
        name="brackets",
        summary="a transformer of three layers that tells balanced strings of up to 32 brackets from near ones",
        known="the rule; which strings were held out",
        module=f"{_HERE}.brackets",
    ),
    *(
        Organism(
            name="sparse-parity" + suffix,
            summary=f"an MLP on the parity of three bits among {junk} of junk, with its training",
            known="which bits count; its split",
            module=f"{_HERE}.sparse_parity",
        )
        for suffix, junk in (("", 24), (":12", 12), (":0", 0))
    ),
)
