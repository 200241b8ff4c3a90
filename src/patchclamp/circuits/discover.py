"""From a task to a circuit in one call: score edges, choose, run the choice alone, beside random circuits.

circuit = pc.circuits.discover(model, task, method="eap-ig", edges=0.1)
circuit.rows()                                   # faithfulness and completeness under three ablations
"""

import difflib
from collections.abc import Callable, Sequence

from patchclamp import metrics
from patchclamp.circuits.acdc import acdc
from patchclamp.circuits.atp import atp, atp_star
from patchclamp.circuits.circuit import Circuit
from patchclamp.circuits.clean_corrupted import clean_corrupted
from patchclamp.circuits.eap import eap
from patchclamp.circuits.eap_ig import eap_ig
from patchclamp.circuits.edge_pruning import edge_pruning
from patchclamp.circuits.exact import exact
from patchclamp.circuits.graph import Graph, GraphError
from patchclamp.circuits.information_flow import information_flow
from patchclamp.circuits.measures import judge
from patchclamp.circuits.node_patching import node_patching
from patchclamp.circuits.path_patching import path_patching
from patchclamp.circuits.random_scores import random_scores
from patchclamp.circuits.scores import Scores
from patchclamp.circuits.select import How, select
from patchclamp.circuits.wiring import ABLATIONS, Ablation
from patchclamp.model import Model
from patchclamp.tasks import Task

Method = Callable[..., Scores]


def _random(model: Model, task: Task, graph: Graph | None, *, metric: object) -> Scores:
    return random_scores(model, task, graph)


def _activations(model: Model, task: Task, graph: Graph | None, *, metric: "str | metrics.Metric") -> Scores:
    return eap_ig(model, task, graph, metric=metric, of="activations")


def _pruning(model: Model, task: Task, graph: Graph | None, *, metric: object) -> Scores:
    return edge_pruning(model, task, graph)


def _flow(model: Model, task: Task, graph: Graph | None, *, metric: object) -> Scores:
    return information_flow(model, task, graph)


METHODS: dict[str, Method] = {
    "exact": exact,
    "eap-ig": eap_ig,
    "eap-ig-activations": _activations,
    "clean-corrupted": clean_corrupted,
    "eap": eap,
    "atp": atp,
    "atp-star": atp_star,
    "acdc": acdc,
    "node-patching": node_patching,
    "path-patching": path_patching,
    "edge-pruning": _pruning,
    "information-flow": _flow,
    "random": _random,
}
"""By name, as method(model, task, graph, metric=); each file's function takes what else there is to say."""


def discover(
    model: Model,
    task: Task,
    *,
    method: "str | Method | Scores" = "eap-ig",
    edges: int | float = 0.1,
    graph: Graph | None = None,
    how: How = "top",
    signed: bool = False,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    ablations: Sequence[Ablation] = ABLATIONS,
    judged_on: Task | None = None,
    random: int = 10,
    seed: int = 0,
    batch: int = 32,
) -> Circuit:
    """The circuit of a behaviour, with at most `edges` edges (below 1: a share of all).

    `method` is a name of `METHODS`, a function like them, or scores that are at hand. It is judged on `judged_on`, or
    on the same prompts, under each of `ablations`, beside `random` connected circuits of random edges.
    """
    if isinstance(method, str):
        if method not in METHODS:
            near = difflib.get_close_matches(method.replace("_", "-").lower(), METHODS, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise GraphError(f"no method is called {method!r}. {hint}There are: {', '.join(METHODS)}.")
        method = METHODS[method]
    scores = method if isinstance(method, Scores) else method(model, task, graph, metric=metric)
    mask = select(scores, edges, how=how, signed=signed)
    if not bool(mask.any()):
        raise GraphError(f"no path from an embedding to the logits has {edges} edges or fewer: allow more")
    measured = [
        judge(
            model,
            judged_on or task,
            scores.graph,
            mask,
            metric=metric,
            ablation=ablation,
            random=random,
            seed=seed,
            batch=batch,
        )
        for ablation in ablations
    ]
    return Circuit(scores, mask, tuple(measured))
