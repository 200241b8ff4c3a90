"""Activations, stored once and read many times: write, resume, stream shuffled; on one machine, torchrun or Ray."""

from patchclamp.store.rows import Held as Held
from patchclamp.store.rows import PairedRows as PairedRows
from patchclamp.store.rows import Rows as Rows
from patchclamp.store.rows import held as held
from patchclamp.store.statistics import Statistics as Statistics
