"""Activations whose sparse features are known, because they were planted: no network, and no forward pass.

    from patchclamp.organisms import planted

    world = planted.superposition(features=256, width=64, active=8)      # or tree, pair, circles, layers, ...
    batch = world.sample(4096, seed=0)             # .activations, .fires, .coefficients
    for batch in world.stream(1024, seed=1): ...   # without end; row i is the same row whatever the batch size
    truth = world.truth()                          # .directions, .probabilities, .parents, .groups, .labels

`Planted` is data: `dataclasses.replace(world, noise=0.1)` is the same world, same codes, with more noise.
"""

from patchclamp.organisms.planted.batch import Batch as Batch
from patchclamp.organisms.planted.fixtures import circles as circles
from patchclamp.organisms.planted.fixtures import layers as layers
from patchclamp.organisms.planted.fixtures import neurons as neurons
from patchclamp.organisms.planted.fixtures import pair as pair
from patchclamp.organisms.planted.fixtures import power_law as power_law
from patchclamp.organisms.planted.fixtures import sparse_codes as sparse_codes
from patchclamp.organisms.planted.fixtures import superposition as superposition
from patchclamp.organisms.planted.fixtures import teacher as teacher
from patchclamp.organisms.planted.fixtures import tree as tree
from patchclamp.organisms.planted.laws import Constant as Constant
from patchclamp.organisms.planted.laws import Exponential as Exponential
from patchclamp.organisms.planted.laws import HalfNormal as HalfNormal
from patchclamp.organisms.planted.laws import Law as Law
from patchclamp.organisms.planted.laws import Uniform as Uniform
from patchclamp.organisms.planted.layout import PlantedTruth as PlantedTruth
from patchclamp.organisms.planted.world import Planted as Planted
from patchclamp.organisms.planted.world import Teacher as Teacher
