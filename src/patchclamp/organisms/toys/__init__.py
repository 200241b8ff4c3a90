"""Being written."""

from patchclamp.organisms.entry import Organism

ORGANISMS: tuple[Organism, ...] = ()
