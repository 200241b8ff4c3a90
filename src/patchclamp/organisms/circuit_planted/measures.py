"""Whether a network does what a program does, where it is said to: the same exchange of activations and of variables.

    truth = pc.organisms.truth("planted-circuit:pointer")
    interchange_accuracy(model, truth)["z.0.0"]         # Agreement(right=1.0, changed=1.0, share_changed=0.61)
    spare_accuracy(model, truth)                        # with all that is not in the circuit resampled at once
    node_effects(model, truth), edge_effects(model, truth)     # share of answers that resampling one of them changes

They take any network whose truth has a program and an alignment: compiled ones too. Runs that are patched from are in
the batch of those that are patched: `origins[site][r, p]` is the row whose activation row r has at position p.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp import interventions
from patchclamp.model import Model
from patchclamp.organisms.circuit_planted.interpreter import IGNORED, evaluate, exchanged, output_ids
from patchclamp.organisms.compiled.compile import CompiledTruth
from patchclamp.organisms.compiled.edges import Edge, ablate_edges
from patchclamp.organisms.compiled.program import Program
from patchclamp.sites import Site

Origins = Mapping[Site, Int[Tensor, "row pos"]]


@dataclass(frozen=True)
class Agreement:
    """How often the network's token is the program's: of all answers, and of those that the exchange changes, which
    are `share_changed` of all (`changed` is nan where it changes none).
    """

    right: float
    changed: float
    share_changed: float


def interchange_accuracy(
    model: Model, truth: CompiledTruth, *, n: int = 512, partly: float = 0.0, seed: int = 0
) -> dict[str, Agreement]:
    """For each component of the circuit: its activation from another input, against the program with the component's
    variables from that input (Geiger et al. 2021, arXiv:2106.02997). "all" is a random half of the components and of
    the spare ones at once, each from an input of its own.

    At all positions, or, in `partly` of the rows, at a random half of them. Answers are those of every position that
    has an output, on `n` inputs that were held out.
    """
    tokens = _inputs(truth, 2 * n, seed)
    drawn = {str(site): ([site], 1.0) for site in sorted(truth.nodes, key=str)}
    drawn["all"] = ([*sorted(truth.nodes, key=str), *spare(model, truth)], 0.5)
    found = {}
    for index, (name, (sites, share)) in enumerate(drawn.items()):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        origins = draw_origins(sites, tokens, share=share, partly=partly, generator=generator)
        found[name] = agreement(model, truth, tokens, origins)
    return found


def spare_accuracy(model: Model, truth: CompiledTruth, *, n: int = 512, seed: int = 0) -> float:
    """The share of answers that are the program's when everything outside the circuit has another input's activations:
    each component those of an input of its own.
    """
    tokens = _inputs(truth, 2 * n, seed)
    generator = torch.Generator().manual_seed(seed)
    origins = draw_origins(spare(model, truth), tokens, share=1.0, partly=0.0, generator=generator)
    return agreement(model, truth, tokens, origins).right


def node_effects(model: Model, truth: CompiledTruth, *, n: int = 512, seed: int = 0) -> dict[Site, float]:
    """For each head and each MLP, the share of the network's answers that another input's activation there changes."""
    tokens = _inputs(truth, 2 * n, seed)
    found = {}
    clean, asked = _tokens(model, tokens, {}), _answers(truth, tokens, {})[n:] != IGNORED
    for index, site in enumerate([*sorted(truth.nodes, key=str), *spare(model, truth)]):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        origins = draw_origins([site], tokens, share=1.0, partly=0.0, generator=generator)
        found[site] = _share((_tokens(model, tokens, origins) != clean)[n:], asked)
    return found


def edge_effects(model: Model, truth: CompiledTruth, *, n: int = 256, seed: int = 0) -> dict[Edge, float]:
    """For each edge, the share of the network's answers that change when its reader has another input's share of the
    sender. What is alike for all inputs, such as the position embedding, changes nothing.
    """
    tokens = _inputs(truth, n, seed)
    clean, asked = _tokens(model, tokens, {}), _answers(truth, tokens, {}) != IGNORED
    every = ablate_edges(model, tokens, to="resample", seed=seed)
    return {(sender, reader): _share(logits.argmax(-1).cpu() != clean, asked) for sender, reader, logits in every}


def spare(model: Model, truth: CompiledTruth) -> list[Site]:
    """The heads and MLPs that are not in the circuit."""
    heads = [Site("z", layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    mlps = [Site("mlp_out", layer) for layer in range(model.n_layers)]
    return [site for site in (*heads, *mlps) if site not in truth.nodes]


def agreement(model: Model, truth: CompiledTruth, tokens: Int[Tensor, "row pos"], origins: Origins) -> Agreement:
    """How far the network and the program agree on the second half of the rows, whose activations and variables are
    exchanged.
    """
    rows = slice(len(tokens) // 2, None)
    answers, before = _answers(truth, tokens, origins)[rows], _answers(truth, tokens, {})[rows]
    right = _tokens(model, tokens, origins)[rows] == answers
    asked = answers != IGNORED
    changed = asked & (answers != before)
    return Agreement(_share(right, asked), _share(right, changed), _share(changed, asked))


# ── one exchange, of both ─────────────────────────────────────────────────────────────────────────────────────────


def draw_origins(
    sites: Iterable[Site],
    tokens: Int[Tensor, "row pos"],
    *,
    share: float,
    partly: float,
    generator: torch.Generator,
) -> dict[Site, Int[Tensor, "row pos"]]:
    """For each site, the row that each row has it from. The first half of the rows keep their own; of the second, a
    `share` has one of the first half's, in `partly` of the cases at a random half of the positions.
    """
    rows, length = tokens.shape
    own = torch.arange(rows)[:, None].expand(rows, length)
    found = {}
    for site in sites:
        other = torch.randint(rows // 2, (rows, 1), generator=generator)
        taken = torch.rand(rows, 1, generator=generator) < share
        everywhere = torch.rand(rows, 1, generator=generator) >= partly
        where = torch.rand(rows, length, generator=generator) < 0.5
        found[site] = torch.where(taken & (everywhere | where) & (own >= rows // 2), other, own)
    return found


def run_exchanged(model: Model, tokens: Int[Tensor, "row pos"], origins: Origins) -> Float[Tensor, "row pos vocab"]:
    """The network's logits with activations exchanged between rows; a training step may go through it.

    ValueError where a whole site and one of its heads are both exchanged.
    """
    by_whole: dict[Site, dict[int | None, Int[Tensor, "row pos"]]] = defaultdict(dict)
    for site, origin in origins.items():
        by_whole[site.whole][site.unit] = origin
    for whole, units in by_whole.items():
        if None in units and len(units) > 1:
            raise ValueError(
                f"origins names both {whole} and its heads {sorted(unit for unit in units if unit is not None)}"
            )
    do = [interventions.edit(str(whole), partial(_units, origins=units)) for whole, units in by_whole.items()]
    with model.under(do):
        return model.hf(input_ids=tokens.to(model.device)).logits


def _units(
    x: Float[Tensor, "row pos *rest"], *, origins: Mapping[int | None, Int[Tensor, "row pos"]]
) -> Float[Tensor, "row pos *rest"]:
    """An activation with some of its heads exchanged, or (None) all of it."""
    if None in origins:
        return exchanged(x, origins[None])
    own = torch.arange(len(x))[:, None].expand(x.shape[:2])
    origin = torch.stack([origins.get(unit, own) for unit in range(x.shape[2])], 2).to(x.device)
    places = torch.arange(x.shape[1], device=x.device)[:, None]
    return x[origin, places, torch.arange(x.shape[2], device=x.device)]


def answers_exchanged(
    program: Program, alignment: Mapping[str, Site], tokens: Int[Tensor, "row pos"], origins: Origins
) -> Int[Tensor, "row pos"]:
    """What the program says with the variables of these sites exchanged in the same way; `IGNORED` where nothing."""
    by_name = {}
    for name, site in alignment.items():
        ports = {f".{kind}": Site(kind, site.layer, site.unit) for kind in "qkv"} if site.kind == "z" else {}
        by_name |= {name + port: origins[at] for port, at in {"": site, **ports}.items() if at in origins}
    return output_ids(program, evaluate(program, tokens, by_name))


def _inputs(truth: CompiledTruth, n: int, seed: int) -> Int[Tensor, "row pos"]:
    if truth.program is None or not truth.alignment:
        raise ValueError(f"the truth of '{truth.name}' has no program with an alignment, which an interchange needs")
    return truth.sample(n, seed)[0]


def _answers(truth: CompiledTruth, tokens: Int[Tensor, "row pos"], origins: Origins) -> Int[Tensor, "row pos"]:
    assert truth.program is not None
    return answers_exchanged(truth.program, truth.alignment, tokens, origins)


def _tokens(model: Model, tokens: Int[Tensor, "row pos"], origins: Origins) -> Int[Tensor, "row pos"]:
    with torch.no_grad():
        return run_exchanged(model, tokens, origins).argmax(-1).cpu()


def _share(some: Tensor, among: Tensor) -> float:
    return float(some[among].float().mean())
