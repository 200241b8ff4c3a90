"""Sparse dictionaries of activations: learned, read, measured.

dictionary = pc.dictionaries.train(pc.dictionaries.TopK(k=32), data, width=12288, tokens=10_000_000)
codes = dictionary.encode(x)                     # indices and values of the active latents
dictionary.save("my-dictionary"); pc.dictionaries.load("my-dictionary")
"""

from patchclamp.dictionaries import discrete as discrete
from patchclamp.dictionaries import inference as inference
from patchclamp.dictionaries import itda as itda
from patchclamp.dictionaries import measures as measures
from patchclamp.dictionaries import meta as meta
from patchclamp.dictionaries import stitching as stitching
from patchclamp.dictionaries import supervised as supervised
from patchclamp.dictionaries.codes import Codes as Codes
from patchclamp.dictionaries.crosslayer import CrossLayerTranscoder as CrossLayerTranscoder
from patchclamp.dictionaries.crosslayer_training import CrossLayerTrainer as CrossLayerTrainer
from patchclamp.dictionaries.crosslayer_training import train_crosslayer as train_crosslayer
from patchclamp.dictionaries.dictionary import Dictionary as Dictionary
from patchclamp.dictionaries.end_to_end import end_to_end as end_to_end
from patchclamp.dictionaries.formats import FORMATS as FORMATS
from patchclamp.dictionaries.formats import load as load
from patchclamp.dictionaries.inference import infer as infer
from patchclamp.dictionaries.itda import ITDA as ITDA
from patchclamp.dictionaries.latents import Latents as Latents
from patchclamp.dictionaries.parts import AbsoluteTopK as AbsoluteTopK
from patchclamp.dictionaries.parts import BatchTopK as BatchTopK
from patchclamp.dictionaries.parts import Gated as Gated
from patchclamp.dictionaries.parts import GroupMax as GroupMax
from patchclamp.dictionaries.parts import JumpReLU as JumpReLU
from patchclamp.dictionaries.parts import Matryoshka as Matryoshka
from patchclamp.dictionaries.parts import PAnneal as PAnneal
from patchclamp.dictionaries.parts import ReLU as ReLU
from patchclamp.dictionaries.parts import TopK as TopK
from patchclamp.dictionaries.parts import part as part
from patchclamp.dictionaries.pursuit import matching_pursuit as matching_pursuit
from patchclamp.dictionaries.replace import fidelity as fidelity
from patchclamp.dictionaries.replace import replaced as replaced
from patchclamp.dictionaries.replace import without as without
from patchclamp.dictionaries.scaling import latent_scaling as latent_scaling
from patchclamp.dictionaries.scaling import norm_scores as norm_scores
from patchclamp.dictionaries.scaling import together as together
from patchclamp.dictionaries.train import train as train
from patchclamp.dictionaries.trainer import Trainer as Trainer
from patchclamp.dictionaries.transplant import transplant as transplant
