"""Probes: what can be read from activations, by how simple a reader, beside what the reader could do alone.

scores = probes.probe(model, texts, labels)     # every layer, cross-validated, beside its controls
probe = probes.Logistic(C=0.1).fit(x, y)        # x [..., row, d]: layers, positions and labels in one pass
probes.KSparse(3, selector="f").fit(x, y).support_
probes.RidgeRegression().fit(x, numbers)        # how much, not whether: R²
"""

from patchclamp.probes import controls as controls
from patchclamp.probes import measures as measures
from patchclamp.probes.best_subset import Subset as Subset
from patchclamp.probes.best_subset import best_subset as best_subset
from patchclamp.probes.contrast import CCS as CCS
from patchclamp.probes.contrast import accurate_h as accurate_h
from patchclamp.probes.contrast import agreeing_h as agreeing_h
from patchclamp.probes.contrast import descended as descended
from patchclamp.probes.estimator import Estimator as Estimator
from patchclamp.probes.estimator import Probe as Probe
from patchclamp.probes.estimator import Vector as Vector
from patchclamp.probes.estimator import one_hot as one_hot
from patchclamp.probes.files import probe_file as probe_file
from patchclamp.probes.latent import OnLatents as OnLatents
from patchclamp.probes.linear import LDA as LDA
from patchclamp.probes.linear import DifferenceOfMeans as DifferenceOfMeans
from patchclamp.probes.linear import NearestMean as NearestMean
from patchclamp.probes.linear import Ridge as Ridge
from patchclamp.probes.logistic import Logistic as Logistic
from patchclamp.probes.neural import MLP as MLP
from patchclamp.probes.neural import AttentionPooled as AttentionPooled
from patchclamp.probes.neural import NearestNeighbours as NearestNeighbours
from patchclamp.probes.neural import PCALogistic as PCALogistic
from patchclamp.probes.quiver import Quiver as Quiver
from patchclamp.probes.regimes import flipped as flipped
from patchclamp.probes.regimes import scarce as scarce
from patchclamp.probes.regimes import shifted as shifted
from patchclamp.probes.regression import MLPRegression as MLPRegression
from patchclamp.probes.regression import RidgeRegression as RidgeRegression
from patchclamp.probes.regression import SparseRegression as SparseRegression
from patchclamp.probes.scan import Scores as Scores
from patchclamp.probes.scan import probe as probe
from patchclamp.probes.selectors import SELECTORS as SELECTORS
from patchclamp.probes.separation import Separation as Separation
from patchclamp.probes.separation import separation as separation
from patchclamp.probes.sparse import KSparse as KSparse
