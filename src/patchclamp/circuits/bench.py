"""Every method on networks whose circuit is known: the area under the ROC curve of its edges, in one table.

    rows = run()                     # [{"method": "eap-ig", "program": "compiled:sort", "auroc": 1.0}, ...]
    means(rows)                      # by method, beside random scores

The four circuit-planted networks are as they are. Compiled programs attend so sharply (52 nats between a match and the
next best) that the softmax has no gradient at all, which no trained network is like: their queries are scaled so that
the nats are 8, at which every answer stays what it was. Prompts are exchanged for others of the program. What no such
exchange can find is left out: edges of the position embedding, which is the same in both runs, and known edges that
never carry anything else than what they carried (what tells a head that it is at the first token).
"""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from patchclamp.circuits.acdc import acdc
from patchclamp.circuits.atp import atp_star
from patchclamp.circuits.clean_corrupted import clean_corrupted
from patchclamp.circuits.eap import eap
from patchclamp.circuits.eap_ig import eap_ig
from patchclamp.circuits.edge_pruning import edge_pruning
from patchclamp.circuits.exact import exact
from patchclamp.circuits.graph import Edge, Graph
from patchclamp.circuits.information_flow import information_flow
from patchclamp.circuits.node_patching import node_patching
from patchclamp.circuits.random_scores import random_scores
from patchclamp.circuits.scores import Scores, auroc
from patchclamp.circuits.select import strengths
from patchclamp.circuits.wiring import sides
from patchclamp.loading import load
from patchclamp.model import Model, wrap
from patchclamp.organisms import truth as truth_of
from patchclamp.organisms.compiled.weights import NATS
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views.terminal import track

PLANTED = ("induction", "pointer", "duplicate-removal", "bracket-balance")
COMPILED = (
    *("previous-token", "induction", "histogram", "seen-before", "first-occurrence", "last-repeated"),
    *("most-frequent", "sum-modulo", "bracket-depth", "reverse", "sort", "indirect-object"),
)
PROGRAMS = (*(f"planted-circuit:{name}" for name in PLANTED), *(f"compiled:{name}" for name in COMPILED))
SOFT = 8.0  # nats between the scores of a match and of the next best
PROMPTS = 16
_DRAWS = 50  # random scores of which the mean is taken
_SAME = 1e-5  # of the size of what a reader makes: what is carried if rounding is all that changes

Method = Callable[[Model, Task], Scores]


def _pruned(model: Model, task: Task) -> Scores:
    return edge_pruning(model, task, edges=0.05, steps=120)


def _activations(model: Model, task: Task) -> Scores:
    return eap_ig(model, task, of="activations", steps=4)


METHODS: dict[str, Method] = {
    "exact": exact,
    "acdc": acdc,
    "eap-ig": eap_ig,
    "eap-ig-activations": _activations,
    "clean-corrupted": clean_corrupted,
    "eap": eap,
    "atp-star": atp_star,
    "edge-pruning": _pruned,
    "node-patching": node_patching,
    "information-flow": information_flow,
}


@dataclass(frozen=True)
class Known:
    """A network, a task that it solves, its circuit, and which edges an exchange between prompts could tell apart."""

    model: Model
    task: Task
    edges: frozenset[Edge]
    tested: Bool[Tensor, "edge"]

    def auroc(self, scores: Scores) -> float:
        """Of the edges that can be told apart; scores of nodes count as those of the edges between them."""
        inside = torch.tensor([edge in self.edges for edge in scores.graph.edges])
        return auroc(strengths(scores)[self.tested], inside[self.tested])


def run(
    programs: Sequence[str] = PROGRAMS,
    methods: Sequence[str] = (*METHODS,),
    *,
    prompts: int = PROMPTS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row for each method and program: `method`, `program`, `auroc`; `random` (a mean of 50 draws) is among them.

    ValueError for a method that there is not.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"no method is called {unknown[0]!r}: there are {', '.join(METHODS)}")
    rows: list[dict[str, Any]] = []
    for program in track(programs, "circuits of known programs"):
        case = known(program, prompts=prompts, seed=seed)
        found = {name: case.auroc(METHODS[name](case.model, case.task)) for name in methods}
        drawn = [case.auroc(random_scores(case.model, case.task, seed=seed + draw)) for draw in range(_DRAWS)]
        found["random"] = mean(drawn)
        rows += [{"method": name, "program": program, "auroc": value} for name, value in found.items()]
    return rows


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean over programs of each method."""
    names = dict.fromkeys(row["method"] for row in rows)
    return {name: mean(row["auroc"] for row in rows if row["method"] == name) for name in names}


def known(program: str, *, nats: float | None = SOFT, prompts: int = PROMPTS, seed: int = 0) -> Known:
    """One organism with a task; compiled programs with `nats` between scores (None: as they were compiled)."""
    model, truth = load(f"organism:{program}"), truth_of(program)
    if nats is not None and program.startswith("compiled:"):
        model = softened(model, nats)
    task = program_task(truth, prompts, seed)
    graph = Graph.of(model)
    varies = torch.tensor([sender.kind != "pos_embed" for sender, _ in graph.edges])
    inside = torch.tensor([edge in truth.edges for edge in graph.edges])
    return Known(model, task, truth.edges, varies & (carries(model, task) | ~inside))


def softened(model: Model, nats: float) -> Model:
    """A copy of a compiled program with `nats` between the scores of a match and of the next best."""
    hf: Any = copy.deepcopy(model.hf)
    for block in hf.transformer.h:
        projection, width = block.attn.c_attn, model.d_model
        projection.weight.data[:, :width] *= nats / NATS
        projection.bias.data[:width] *= nats / NATS
    return wrap(hf, name=f"{model.name} at {nats:g} nats")


def program_task(truth: Any, n: int, seed: int = 0) -> Task:
    """Inputs of a program with their answers at the last position; corrupted: an input with another answer."""
    rng, program = random.Random(seed), truth.program
    clean, corrupt, answers, wrong = zip(*(program.pair(rng, None) for _ in range(n)), strict=True)
    number = program.vocabulary.index
    return Task.from_tokens(
        clean=[program.ids(row) for row in clean],
        corrupt=[program.ids(row) for row in corrupt],
        answers=[number(answer) for answer in answers],
        wrong=[number(answer) for answer in wrong],
        name=truth.name,
    )


@torch.no_grad()
def carries(model: Model, task: Task) -> Bool[Tensor, "edge"]:
    """Which edges change anything in what their reader makes (a query, a key, a value, an MLP's output, logits) when
    they carry the corrupted prompts' contribution.
    """
    graph = Graph.of(model)
    found = torch.zeros(len(graph.edges), dtype=torch.bool)
    for side in sides(model, graph, task):
        difference, blocks = side.other - side.clean.sent, side.wiring.blocks

        def differs(made: Tensor) -> Tensor:
            """Of [1 + sender, ...] made of the clean stream and of each exchange."""
            size = made[0].abs().max()
            return (made[1:] - made[0]).flatten(1).abs().amax(1) > _SAME * size

        for reader in graph.readers:
            edges = [number for number, (_, end) in enumerate(graph.edges) if end == reader]
            senders = graph.pairs[0, edges].tolist()
            layer = reader.layer
            stream = side.clean.stream if layer is None else side.clean.before[layer]
            if reader.kind == "mlp_in":
                stream = stream + side.clean.added[layer or 0]
            streams = torch.cat([stream[None], stream + difference[senders]])
            if layer is None:
                made = blocks.logits(streams.flatten(0, 1), side.task.positions).unflatten(0, (len(streams), -1))
            elif reader.kind == "mlp_in":
                mlp = model.hf.get_submodule(model.anatomy.taps[Site("mlp_in", layer)].path)
                made = mlp(blocks.mlp_input(layer, streams))
            else:
                made = blocks.inputs(layer, streams)[reader.kind][:, :, :, reader.unit]
            found[edges] |= differs(made).cpu()
    return found
