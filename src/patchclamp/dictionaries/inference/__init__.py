"""Codes for a decoder without its encoder: solve for them, pursue them, or learn a better encoder.

codes = pc.dictionaries.infer(dictionary, x, "omp", k=32)             # or fista, ista, gradient-pursuit, optimise
rows = inference.compare(dictionary, x, k=32)                         # its own encoder's gap to inference
mlp = inference.amortise(dictionary, data, hidden=(512,), l1=0.1)     # an encoder of any depth for that decoder
dictionary = inference.sparse_coding(data, width=1024, l1=0.1)        # decoder learned with FISTA's codes

The gap between what a linear encoder says and what the decoder could is arXiv:2411.13117.
"""

from patchclamp.dictionaries.inference.compare import compare as compare
from patchclamp.dictionaries.inference.encoders import AmortisedEncoder as AmortisedEncoder
from patchclamp.dictionaries.inference.encoders import amortise as amortise
from patchclamp.dictionaries.inference.flops import flops as flops
from patchclamp.dictionaries.inference.infer import METHODS as METHODS
from patchclamp.dictionaries.inference.infer import infer as infer
from patchclamp.dictionaries.inference.learning import sparse_coding as sparse_coding
from patchclamp.dictionaries.inference.logcodes import optimise as optimise
from patchclamp.dictionaries.inference.proximal import fista as fista
from patchclamp.dictionaries.inference.proximal import ista as ista
from patchclamp.dictionaries.inference.pursuit import gradient_pursuit as gradient_pursuit
from patchclamp.dictionaries.inference.pursuit import omp as omp
from patchclamp.dictionaries.inference.solution import Solution as Solution
from patchclamp.dictionaries.inference.solution import Unsolved as Unsolved
