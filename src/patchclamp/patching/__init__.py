"""Patching: which activations carry a behaviour, measured by putting them from one run into another.

`sweep` is exact; `attribution` approximates the same table with gradients; `direct_effect` splits the answer's logit
into what each head, MLP and embedding writes.
`self_repair` says what the rest does when a part is taken away.
`das` and its like find a subspace of an activation to patch, `illusion` tests whether it is used at all.
"""

from patchclamp.patching.attribution import attribution as attribution
from patchclamp.patching.corruption import Corruption as Corruption
from patchclamp.patching.corruption import corrupted_embedding as corrupted_embedding
from patchclamp.patching.direct import direct_effect as direct_effect
from patchclamp.patching.illusion import Illusion as Illusion
from patchclamp.patching.illusion import illusion as illusion
from patchclamp.patching.pairs import Pairs as Pairs
from patchclamp.patching.self_repair import SelfRepair as SelfRepair
from patchclamp.patching.self_repair import self_repair as self_repair
from patchclamp.patching.self_repair import self_repairs as self_repairs
from patchclamp.patching.subspace import Subspace as Subspace
from patchclamp.patching.subspace import das as das
from patchclamp.patching.subspace import gradient_direction as gradient_direction
from patchclamp.patching.subspace import mean_direction as mean_direction
from patchclamp.patching.subspace import random_direction as random_direction
from patchclamp.patching.subspace import rank_one_edit as rank_one_edit
from patchclamp.patching.sweep import sweep as sweep
