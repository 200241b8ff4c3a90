"""Benchmarks of dictionaries: what they keep, find, separate and remove, each beside baselines; and feature cards.

data = pc.evaluation.Labelled.of_text(model, "resid_post.2", documents, "letter:")
scores = pc.evaluation.evaluate(dictionary, data, model=model, site="resid_post.2", texts=texts, seeds=(0, 1, 2))
deck = pc.evaluation.cards(dictionary, model, documents, site="resid_post.2")
"""

from patchclamp.evaluation.absorption import absorption as absorption
from patchclamp.evaluation.absorption import silent_parents as silent_parents
from patchclamp.evaluation.baselines import baselines as baselines
from patchclamp.evaluation.baselines import frozen_decoder as frozen_decoder
from patchclamp.evaluation.baselines import identity as identity
from patchclamp.evaluation.baselines import oracle as oracle
from patchclamp.evaluation.baselines import pca as pca
from patchclamp.evaluation.baselines import untrained as untrained
from patchclamp.evaluation.baselines import zero as zero
from patchclamp.evaluation.benchmark import MEASURES as MEASURES
from patchclamp.evaluation.benchmark import evaluate as evaluate
from patchclamp.evaluation.benchmark import values as values
from patchclamp.evaluation.cards import Card as Card
from patchclamp.evaluation.cards import Cards as Cards
from patchclamp.evaluation.cards import cards as cards
from patchclamp.evaluation.disentanglement import Attribute as Attribute
from patchclamp.evaluation.disentanglement import by_model as by_model
from patchclamp.evaluation.disentanglement import exchange as exchange
from patchclamp.evaluation.disentanglement import rotation as rotation
from patchclamp.evaluation.erasure import spurious as spurious
from patchclamp.evaluation.erasure import targeted as targeted
from patchclamp.evaluation.explanations import Explanation as Explanation
from patchclamp.evaluation.explanations import explain as explain
from patchclamp.evaluation.firings import Context as Context
from patchclamp.evaluation.firings import Firings as Firings
from patchclamp.evaluation.firings import firings as firings
from patchclamp.evaluation.judges import Judge as Judge
from patchclamp.evaluation.judges import TokenJudge as TokenJudge
from patchclamp.evaluation.judges import detection as detection
from patchclamp.evaluation.labelled import Labelled as Labelled
from patchclamp.evaluation.probing import main_latents as main_latents
from patchclamp.evaluation.recovered import Recovered as Recovered
from patchclamp.evaluation.recovered import recovered as recovered
from patchclamp.evaluation.scores import Score as Score
from patchclamp.evaluation.scores import Scores as Scores
from patchclamp.evaluation.unlearning import forgetting as forgetting
