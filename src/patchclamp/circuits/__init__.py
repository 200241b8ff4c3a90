"""Circuits: which paths through a network carry a behaviour."""

from patchclamp.circuits.circuit import Circuit as Circuit
from patchclamp.circuits.clean_corrupted import clean_corrupted as clean_corrupted
from patchclamp.circuits.discover import METHODS as METHODS
from patchclamp.circuits.discover import discover as discover
from patchclamp.circuits.eap import eap as eap
from patchclamp.circuits.eap_ig import eap_ig as eap_ig
from patchclamp.circuits.exact import exact as exact
from patchclamp.circuits.graph import Graph as Graph
from patchclamp.circuits.graph import GraphError as GraphError
from patchclamp.circuits.measures import curve as curve
from patchclamp.circuits.measures import judge as judge
from patchclamp.circuits.measures import measure as measure
from patchclamp.circuits.measures import minimality as minimality
from patchclamp.circuits.paths import PathError as PathError
from patchclamp.circuits.paths import Paths as Paths
from patchclamp.circuits.paths import expand as expand
from patchclamp.circuits.qk_paths import expand_score as expand_score
from patchclamp.circuits.random_scores import random_scores as random_scores
from patchclamp.circuits.scores import Scores as Scores
from patchclamp.circuits.select import select as select
