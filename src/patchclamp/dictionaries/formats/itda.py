"""ITDA as its authors release it: `metadata.yaml`, `atoms.pt` [n, d], `atom_indices.pt` [n, 2] (sequence, token).

Its conventions: atoms have norm 1, nothing is taken off the input, values come of k steps of matching pursuit, 40 where
the metadata do not say. `loss_threshold` is a mean over the dimensions.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.formats.plain import one_site, refuse

if TYPE_CHECKING:
    from patchclamp.dictionaries.itda import ITDA

METADATA, ATOMS, INDICES = "metadata.yaml", "atoms.pt", "atom_indices.pt"


def read(folder: Path) -> "ITDA":
    from patchclamp.dictionaries.itda import ITDA

    metadata = yaml.safe_load((folder / METADATA).read_text()) or {}
    atoms, indices = (torch.load(folder / name, map_location="cpu", weights_only=True) for name in (ATOMS, INDICES))
    atoms = atoms.float()
    norms = atoms.norm(dim=1, keepdim=True)
    unit = torch.where((norms - 1).abs() < 1e-6, atoms, atoms / norms)  # theirs may be of half precision
    return ITDA(unit, indices, min(int(metadata.get("k", 40)), len(atoms)), metadata=metadata)


def write(dictionary: Dictionary, folder: Path) -> None:
    from patchclamp.dictionaries.itda import ITDA

    one_site(dictionary, "ITDA")
    if not isinstance(dictionary, ITDA):
        raise refuse(dictionary, "ITDA", "an encoder of its own, or atoms that no token gave")
    torch.save(dictionary.W_dec.clone(), folder / ATOMS)
    torch.save(dictionary.sources.clone(), folder / INDICES)
    metadata = {**dictionary.metadata, "k": dictionary.k, "activation_dim": dictionary.d_in}
    (folder / METADATA).write_text(yaml.safe_dump(metadata))
