"""Patching: which activations carry a behaviour, measured by putting them from one run into another.

`sweep` is exact; `attribution` approximates the same table with gradients; `direct_effect` splits the answer's logit
into what each head, MLP and embedding writes.
"""

from patchclamp.patching.attribution import attribution as attribution
from patchclamp.patching.corruption import Corruption as Corruption
from patchclamp.patching.corruption import corrupted_embedding as corrupted_embedding
from patchclamp.patching.direct import direct_effect as direct_effect
from patchclamp.patching.sweep import sweep as sweep
