"""Circuits: which paths through a network carry a behaviour."""

from patchclamp.circuits.paths import PathError as PathError
from patchclamp.circuits.paths import Paths as Paths
from patchclamp.circuits.paths import expand as expand
from patchclamp.circuits.scores import expand_score as expand_score
