"""The control of every method: a number for each edge, drawn from its seed and from nothing else.

scores = circuits.random_scores(model, task, seed=0)
"""

import torch

from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.model import Model
from patchclamp.tasks import Task


def random_scores(model: Model, task: Task, graph: Graph | None = None, *, seed: int = 0) -> Scores:
    """Uniform numbers in [0, 1); circuits of them are random circuits, connected like any other."""
    graph = as_graph(model, graph)
    values = torch.rand(graph.shape, generator=torch.Generator().manual_seed(seed))
    return scores_of(model, task, graph, values, "random", None, seed=seed)
