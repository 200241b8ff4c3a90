"""Information flow routes: an edge is as strong as its contribution is close to what its reader reads.

    scores = circuits.information_flow(model, task)

Ferrando and Voita 2024 (arXiv:2403.00824): the proximity of a contribution to the sum is |sum| - |sum - contribution|
in the 1-norm, zero where that is negative, as a share of all contributions'. It needs no corrupted prompts and no
metric, so that it says what is read, and not what it is read for. All readers of one stream weigh it alike.
"""

import torch

from patchclamp.circuits.graph import Graph, as_graph
from patchclamp.circuits.scores import Scores, scores_of
from patchclamp.circuits.wiring import sides
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.tasks import Task


@torch.no_grad()
def information_flow(model: Model, task: Task, graph: Graph | None = None, *, batch: int = 16) -> Scores:
    """Each sender's share of what each reader reads, in [0, 1]: the mean over the prompts' tokens (into the logits,
    over the answers' tokens).
    """
    graph = as_graph(model, graph)
    total, count = graph.zeros(), torch.zeros(2, len(graph.places), dtype=torch.double)
    into: dict[Site, list[int]] = {}
    number = {site: index for index, site in enumerate(graph.senders)}
    for sender, reader in graph.edges:
        into.setdefault(reader, []).append(number[sender])
    for side in sides(model, graph, task, batch=batch):
        real = side.task.mask.to(side.clean.stream.device)
        answers = torch.zeros_like(real)
        answers[torch.arange(len(real)), side.task.positions] = True
        where = torch.nn.functional.one_hot(side.wiring.place, len(graph.places)).double()
        shares: dict[tuple[int, ...], torch.Tensor] = {}
        for index, reader in enumerate(graph.readers):
            senders = into[reader]
            key = (*senders, int(reader.kind == "logits"))
            if key not in shares:
                sent = side.clean.sent[senders]
                stream = sent.sum(0)
                near = (stream.abs().sum(-1) - (stream - sent).abs().sum(-1)).clamp_min(0)
                share = (near / near.sum(0).clamp_min(1e-12)).double()
                counted = (answers if reader.kind == "logits" else real).double()
                shares[key] = torch.einsum("sbt,bt,btp->sp", share, counted, where).cpu()
            total[senders, index] += shares[key]
        count[0] += torch.einsum("bt,btp->p", real.double(), where).cpu()
        count[1] += torch.einsum("bt,btp->p", answers.double(), where).cpu()
    last = graph.readers.index(Site("logits"))
    total[:, :last] /= count[0].clamp_min(1)
    total[:, last] /= count[1].clamp_min(1)
    return scores_of(model, task, graph, graph.vector(total), "information-flow", None)
