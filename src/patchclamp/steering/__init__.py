"""Steering: directions in activation space, how they are found, and what adding or removing them does.

direction = pc.steering.difference(model, joyful, sad, site="resid_post.2")
model.generate("The day", do=[direction.add(1.5)], max_new_tokens=12).text
found = pc.steering.tune(model, direction, behaviour, neutral=texts)        # effect against cost, by strength
"""

from patchclamp.steering import affine as affine
from patchclamp.steering import behaviour as behaviour
from patchclamp.steering import diffing as diffing
from patchclamp.steering import experts as experts
from patchclamp.steering import fields as fields
from patchclamp.steering import subspaces as subspaces
from patchclamp.steering.behaviour import Behaviour as Behaviour
from patchclamp.steering.behaviour import Neutral as Neutral
from patchclamp.steering.comparison import Comparison as Comparison
from patchclamp.steering.comparison import compare as compare
from patchclamp.steering.control import ControlVector as ControlVector
from patchclamp.steering.control import Monitor as Monitor
from patchclamp.steering.control import control_vector as control_vector
from patchclamp.steering.control import monitor as monitor
from patchclamp.steering.direction import Direction as Direction
from patchclamp.steering.direction import DirectionError as DirectionError
from patchclamp.steering.direction import load as load
from patchclamp.steering.direction import random as random
from patchclamp.steering.direction import writes as writes
from patchclamp.steering.function_vectors import function_vectors as function_vectors
from patchclamp.steering.gated import Gated as Gated
from patchclamp.steering.gated import gated as gated
from patchclamp.steering.gguf import load_gguf as load_gguf
from patchclamp.steering.gguf import save_gguf as save_gguf
from patchclamp.steering.guidance import Guidance as Guidance
from patchclamp.steering.guidance import guided as guided
from patchclamp.steering.means import activations as activations
from patchclamp.steering.means import centre as centre
from patchclamp.steering.means import difference as difference
from patchclamp.steering.means import differences as differences
from patchclamp.steering.means import mean as mean
from patchclamp.steering.means import mean_centred as mean_centred
from patchclamp.steering.means import principal as principal
from patchclamp.steering.select import Selected as Selected
from patchclamp.steering.select import select as select
from patchclamp.steering.tune import Response as Response
from patchclamp.steering.tune import tune as tune
from patchclamp.steering.units import Units as Units
from patchclamp.steering.units import momentum as momentum
from patchclamp.steering.units import units as units
