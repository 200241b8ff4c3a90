"""Probes: what can be read from activations, by how simple a reader, beside what the reader could do alone.

probe = probes.Logistic(C=0.1).fit(x, y)        # x [..., row, d]: layers, positions and labels in one pass
probes.KSparse(3, selector="f").fit(x, y).support_
"""

from patchclamp.probes import measures as measures
from patchclamp.probes.best_subset import Subset as Subset
from patchclamp.probes.best_subset import best_subset as best_subset
from patchclamp.probes.estimator import Estimator as Estimator
from patchclamp.probes.estimator import Probe as Probe
from patchclamp.probes.estimator import Vector as Vector
from patchclamp.probes.estimator import one_hot as one_hot
from patchclamp.probes.linear import LDA as LDA
from patchclamp.probes.linear import DifferenceOfMeans as DifferenceOfMeans
from patchclamp.probes.linear import NearestMean as NearestMean
from patchclamp.probes.linear import Ridge as Ridge
from patchclamp.probes.logistic import Logistic as Logistic
from patchclamp.probes.selectors import SELECTORS as SELECTORS
from patchclamp.probes.sparse import KSparse as KSparse
