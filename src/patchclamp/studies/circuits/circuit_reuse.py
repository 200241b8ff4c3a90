"""Circuit component reuse across tasks (Merullo, Eickhoff and Pavlick 2024).

In GPT-2 medium the circuits of indirect objects and of coloured objects share 78 % of their heads, and where the model
fails at colours, holding the attention of four shared heads to what they do for names repairs it. Here both circuits
are found by exact edge patching on `tales` and compared with circuits that have as many edges between each pair of
layers. Each circuit is also run alone on the other's task.

`tales` learned names first, right behind induction, and colours last: its seeds share much between colours and
induction, and less between colours and names. That was seen on prompts of seeds 0 and 1 of `tales`, `tales-1` and
`tales-2` before the claim about induction was written; this study draws others. The repair is of `tales@2048`, which
repeats sequences and gets three colours of five right: the heads that write the answer of a repeated sequence are told
to look at the asked colour, at the last token alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import patchclamp as pc
from patchclamp import circuits, metrics, tasks
from patchclamp.circuits import Circuit, Overlap
from patchclamp.circuits.measures import Measured as Judged
from patchclamp.circuits.measures import random_circuits
from patchclamp.circuits.wiring import ABLATIONS
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.studies.behaviour import task_of, task_on
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study
from patchclamp.tasks import Task

study = Study(
    name="circuit-reuse",
    paper="Circuit Component Reuse Across Tasks in Transformer Language Models (arXiv:2310.08744)",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales",
)

SHARE, CUT = 0.1, 5000
NAMES, COLOURS, REPEATS = "ioi", "colored_objects", "induction"
UNREPAIRED = "tales@2048"
_RANDOM = 10


@study.finding("the model does both tasks", at_least=0.95, control="the same answers on the corrupted prompts")
def does_both(lab: Lab) -> Measured:
    """Share of prompts whose right answer beats the wrong ones, over the prompts of both."""
    both = [_task(lab, name) for name in (NAMES, COLOURS)]
    clean, corrupt = (torch.cat([_right(lab.model, task, side) for task in both]) for side in ("clean", "corrupt"))
    return Measured.share(clean, control=corrupt)


@study.finding(
    "at most 10 % of the edges do indirect objects alone (faithfulness, resampling)",
    at_least=0.8,
    control="ten random circuits of as many edges",
    given=does_both,
)
def names_circuit(lab: Lab) -> Measured:
    return _alone(lab, NAMES)


@study.finding(
    "at most 10 % of the edges do coloured objects alone (faithfulness, resampling)",
    at_least=0.8,
    control="ten random circuits of as many edges",
    given=does_both,
)
def colours_circuit(lab: Lab) -> Measured:
    return _alone(lab, COLOURS)


@study.finding(
    "random circuits of that size do neither (the largest faithfulness)",
    at_most=0.2,
    control="the two circuits",
    given=does_both,
)
def random_circuits_do_neither(lab: Lab) -> Measured:
    judged = [lab.once(_judged, name, name) for name in (NAMES, COLOURS)]
    return Measured.number(max(max(one.random) for one in judged), control=[one.faithfulness for one in judged])


@study.finding(
    "most heads of the coloured objects' circuit are in that of indirect objects",
    at_least=0.78,
    control="as many heads in each layer, drawn at random",
    given=does_both,
)
def heads_are_shared(lab: Lab) -> Measured:
    """Share of heads; the control's range is that of 95 % of the draws."""
    heads = lab.once(_overlap, NAMES, COLOURS).heads
    drawn = np.quantile(heads.null, [0.025, 0.975]) / heads.second
    return Measured.number(heads.share, control=drawn)


@study.finding(
    "the circuits of indirect and of coloured objects share more edges than chance (permutation p)",
    at_most=0.01,
    control="the p of random circuits of as many edges",
    given=does_both,
)
def names_and_colours_share(lab: Lab) -> Measured:
    return _chance(lab, NAMES, COLOURS)


@study.finding(
    "the circuits of repeated sequences and of coloured objects share more edges than chance (permutation p)",
    at_most=0.01,
    control="the p of random circuits of as many edges",
    given=does_both,
)
def repeats_and_colours_share(lab: Lab) -> Measured:
    return _chance(lab, REPEATS, COLOURS)


@study.finding(
    "a circuit alone does the other task as well (faithfulness, the better of both ways)",
    at_least=0.5,
    control="random circuits of as many edges",
    given=does_both,
)
def one_does_the_other(lab: Lab) -> Measured:
    judged = [lab.once(_judged, *pair) for pair in ((NAMES, COLOURS), (COLOURS, NAMES))]
    best = max(judged, key=lambda one: one.faithfulness)
    return Measured.number(best.faithfulness, control=best.random)


@study.finding(
    "heads that repeat sequences, told where to look, repair coloured objects (gain in accuracy)",
    at_least=0.25,
    control="random sets of as many other heads, told the same",
)
def repairs(lab: Lab) -> Measured:
    """By prompt; the control is the mean over random sets."""
    lab.need(lab.truth.name == "tales", "a checkpoint at which the task is not yet learned, as tales has")
    gain, random = lab.once(_repair)
    return Measured.mean(gain, control=random.mean(0))


@study.identity(
    "a circuit of all edges is the network, and one of none the corrupted prompts",
    tolerance=1e-4,
    control="the two the other way round",
    breaks=1e-3,
)
def ends(lab: Lab) -> Measured:
    task = lab.once(task_of)[:8]
    graph = circuits.Graph.of(lab.model)
    every = torch.ones(graph.shape, dtype=torch.bool)
    values = circuits.measure(lab.model, task, graph, [every, ~every])
    sides = [_logits(lab.model, task, side) for side in ("clean", "corrupt")]
    plain = torch.stack([metrics.logit_difference(logits, task) for logits in sides])
    return Measured.gap(values.kept, plain, control=(values.kept.flip(0), plain))


@study.identity("a head told to look where it looks changes nothing", tolerance=0.0)
def own_pattern(lab: Lab) -> Measured:
    task, model = lab.once(task_of)[:8], lab.model
    own = [pc.edit(site, lambda pattern, **_: pattern.clone()) for site in model.sites("pattern.*.*")]
    watched = model.run(task.clean, attention_mask=task.mask, record="pattern.*").logits
    assert watched is not None
    return Measured.gap(task.at_answer(watched), _logits(model, task, "clean", own))


@study.figure("What two circuits share, beside chance")
def overlaps(lab: Lab):
    pairs = [(NAMES, COLOURS), (REPEATS, COLOURS), (NAMES, REPEATS)]
    found = [lab.once(_overlap, *pair) for pair in lab.progress(pairs)]
    shared = [one for pair in found for one in (pair.edges, pair.heads)]
    drawn = [np.quantile([both / one.second for both in one.null], [0.025, 0.975]) for one in shared]
    return pc.views.bars(
        [f"{a} and {b}: {of}" for a, b in pairs for of in ("edges", "heads")],
        [one.share for one in shared],
        control=[float(np.mean(one.null)) / one.second for one in shared],
        control_intervals=drawn,
        title="share of the second circuit that is in the first",
        x_title="share",
        control_label="as many in each layer, at random",
    )


@study.figure("Each circuit alone on each task, under three ablations")
def across_tasks(lab: Lab):
    names = (NAMES, COLOURS, REPEATS)
    rows = [(of, on, ablation) for of in names for on in names for ablation in ABLATIONS]
    judged = [lab.once(_judged, *row) for row in lab.progress(rows)]
    return pc.views.bars(
        [f"{of} on {on}, {ablation}" for of, on, ablation in rows],
        [one.faithfulness for one in judged],
        control=[float(np.mean(one.random)) for one in judged],
        title="faithfulness",
        x_title="faithfulness",
        control_label="random circuits of as many edges",
    )


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


def _task(lab: Lab, name: str, part: int = 0) -> Task:
    """Prompts to find (0) or to judge on (1), that no other part or seed has."""
    return task_on(lab.model, tasks.by_name(name), n=128 if lab.full else 32, seed=1000 + 10 * lab.seed + part)


def _logits(model: Model, task: Task, side: str, do: Sequence[Intervention] = ()) -> Float[Tensor, "prompt vocab"]:
    logits = model.run(getattr(task, side), attention_mask=task.mask, do=do).logits
    assert logits is not None
    return task.at_answer(logits).float()


def _right(model: Model, task: Task, side: str = "clean", do: Sequence[Intervention] = ()) -> Float[Tensor, "prompt"]:
    return metrics.accuracy(_logits(model, task, side, do), task)


def _found(lab: Lab, name: str) -> Circuit:
    return _circuit(lab, lab.model, _task(lab, name))


def _circuit(lab: Lab, model: Model, task: Task) -> Circuit:
    """Each edge is cut in turn; in a large graph, where nobody could wait for that, edges have gradients for scores."""
    few = circuits.Graph.of(model).size <= CUT
    if not few:
        lab.used.add(f"of more than {CUT} edges, chosen by integrated gradients")
    scores = circuits.exact(model, task) if few else circuits.eap_ig(model, task)
    return Circuit(scores, circuits.select(scores, SHARE))


def _judged(lab: Lab, of: str, on: str, ablation: Any = "resample") -> Judged:
    """The circuit of one task alone on another's prompts."""
    circuit = lab.once(_found, of)
    return circuits.judge(
        lab.model, _task(lab, on, 1), circuit.graph, circuit.mask, ablation=ablation, random=_RANDOM, seed=lab.seed
    )


def _alone(lab: Lab, name: str) -> Measured:
    judged = lab.once(_judged, name, name)
    random = (min(judged.random), max(judged.random))
    return Measured(judged.faithfulness, judged.interval, float(np.mean(judged.random)), random)


def _overlap(lab: Lab, first: str, second: str) -> Overlap:
    return circuits.overlap(lab.once(_found, first), lab.once(_found, second), seed=lab.seed)


def _chance(lab: Lab, first: str, second: str) -> Measured:
    found, task = lab.once(_found, first), _task(lab, second)
    size = lab.once(_found, second).size
    masks = random_circuits(lab.model, task, found.graph, size, _RANDOM, seed=lab.seed)
    drawn = [circuits.overlap(found, Circuit(found.scores, mask), seed=lab.seed).edges.p for mask in masks]
    return Measured.number(lab.once(_overlap, first, second).edges.p, control=drawn)


def _repair(lab: Lab) -> tuple[Float[Tensor, "prompt"], Float[Tensor, "set prompt"]]:
    """Gain in accuracy, by prompt, with the movers of repeated sequences, and with random sets of other heads."""
    model = lab.load(UNREPAIRED)
    chosen = _circuit(lab, model, _task(lab, REPEATS)).edges
    movers = [sender for sender, reader in chosen if reader.kind == "logits" and sender.kind == "z"]
    others = [site for site in model.sites("z.*.*") if site not in movers]
    task = _task(lab, COLOURS, 1)
    where = _asked(task)
    before = _right(model, task)

    def gain(heads: list[Site]) -> Float[Tensor, "prompt"]:
        return _right(model, task, do=[_look(head, task, where) for head in heads]) - before

    sets = [
        [others[index] for index in torch.randperm(len(others), generator=lab.generator)[: len(movers)].tolist()]
        for _ in range(_RANDOM)
    ]
    return gain(movers), torch.stack([gain(heads) for heads in sets])


def _asked(task: Task) -> Int[Tensor, "prompt"]:
    """Where the colour stands that is asked for."""
    colours = torch.stack([task.labels[f"C{index}"] for index in (1, 2, 3)], 1)
    right = task.clean.gather(1, colours) == task.answers[:, :1]
    return colours[right]


def _look(head: Site, task: Task, where: Int[Tensor, "prompt"]) -> Any:
    """All attention of a head's last token on one token."""
    prompts = torch.arange(len(task))

    def held(pattern: Tensor, **_: Any) -> Tensor:
        pattern = pattern.clone()
        pattern[prompts, task.positions] = 0
        pattern[prompts, task.positions, where] = 1
        return pattern

    return pc.edit(Site("pattern", head.layer, head.unit), held)
