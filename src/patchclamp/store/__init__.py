"""Activations, stored once and read many times: write, resume, stream shuffled; on one machine, torchrun or Ray.

`record` puts a corpus through a model and its activations into a store, `open` reads one. A `stream` has the same face
and makes the activations as they are asked for, in memory; `held` gives it to a tensor.
"""

from patchclamp.store.errors import Damaged as Damaged
from patchclamp.store.errors import Mismatch as Mismatch
from patchclamp.store.errors import StoreError as StoreError
from patchclamp.store.errors import Unfinished as Unfinished
from patchclamp.store.reader import Store as Store
from patchclamp.store.reader import StoredPairs as StoredPairs
from patchclamp.store.reader import StoredRows as StoredRows
from patchclamp.store.reader import open as open
from patchclamp.store.reader import paired as paired
from patchclamp.store.record import record as record
from patchclamp.store.rows import Held as Held
from patchclamp.store.rows import PairedRows as PairedRows
from patchclamp.store.rows import Rows as Rows
from patchclamp.store.rows import held as held
from patchclamp.store.statistics import Statistics as Statistics
from patchclamp.store.stream import StreamedPairs as StreamedPairs
from patchclamp.store.stream import StreamedRows as StreamedRows
from patchclamp.store.stream import stream as stream
from patchclamp.store.units import Labels as Labels
