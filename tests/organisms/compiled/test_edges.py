"""The circuit is the truth: ablating any other edge changes nothing, ablating any of its own changes the answer."""

import pytest
import torch

import patchclamp as pc
from patchclamp.organisms.compiled import ORGANISMS
from patchclamp.organisms.compiled.compile import MARGIN
from patchclamp.organisms.compiled.edges import ablate_edge, ablate_edges, edges
from patchclamp.organisms.compiled.programs import PROGRAMS
from patchclamp.sites import Site, SiteError

HOW = {"rotated": "rotate", "superposed": "superpose"}
NAMES = [one.name for one in PROGRAMS]
SHIPPED = [one.name.removeprefix("compiled:").split("+") for one in ORGANISMS if "+" in one.name]
COMPRESSED = [(name, HOW[how]) for name, how in SHIPPED]
REST = [(name, how) for name in NAMES for how in HOW.values() if (name, how) not in COMPRESSED]


def furthest_outside(model, n):
    """How far ablating an edge that is not in the circuit moves any logit, as a share of the largest."""
    ids, _ = model.truth.sample(n, seed=5)
    clean = model.run(ids).logits[:, -1]
    outside = [edge for edge in edges(model) if edge not in model.truth.edges]
    assert len(outside) > len(model.truth.edges)
    moved = [
        float((logits[:, -1] - clean).abs().max())
        for to in ("zero", "resample")
        for _, _, logits in ablate_edges(model, ids, outside, to=to)
    ]
    return max(moved) / float(clean.abs().max())


def least_margins(model):
    """For each edge of the circuit the least lead of the right answer, over inputs and both ways to ablate it."""
    ids, answers = model.truth.sample(128, seed=6)
    found = {}
    for to in ("zero", "resample"):
        for sender, reader, logits in ablate_edges(model, ids, model.truth.edges, to=to):
            right = logits[:, -1].gather(1, answers[:, None])[:, 0]
            others = logits[:, -1].scatter(1, answers[:, None], -torch.inf).max(1).values
            found[sender, reader] = min(found.get((sender, reader), MARGIN), float((right - others).min()))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_other_edge_changes_a_logit(compiled, name):
    assert furthest_outside(compiled(name), 4) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_edge_of_the_circuit_can_cost_the_answer_its_lead(compiled, name):
    margins = least_margins(compiled(name))
    assert set(margins) == compiled(name).truth.edges
    assert max(margins.values()) < 0.01 * MARGIN


@pytest.mark.parametrize(
    ("name", "how"), [pair for pair in COMPRESSED if pair[0] in ("induction", "histogram", "reverse")]
)
def test_the_circuit_of_a_compressed_network_is_the_same(compiled, name, how):
    model = compiled(name, how)
    assert model.truth.edges == compiled(name).truth.edges
    assert furthest_outside(model, 4) < 1e-5
    assert max(least_margins(model).values()) < 0.01 * MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), [*COMPRESSED, *REST])
def test_so_is_every_other(compiled, name, how):
    model = compiled(name, how)
    assert model.truth.edges == compiled(name).truth.edges
    assert furthest_outside(model, 16) < 1e-5
    assert max(least_margins(model).values()) < 0.25 * MARGIN


def test_all_pairs_of_a_sender_and_a_reader_behind_it(compiled):
    model = compiled("induction")
    found = edges(model)
    layers, heads = model.n_layers, model.n_heads
    before = [2 + layer * (heads + 1) for layer in range(layers)]
    wanted = sum(3 * heads * senders + senders + heads for senders in before) + 2 + layers * (heads + 1)
    assert len(found) == len(set(found)) == wanted
    assert model.truth.edges < set(found)


def test_an_ablated_edge_is_what_it_says():
    """On a network with norms that are no identity: the last head's share, taken from the logits by hand."""
    model = pc.load("organism:compiled:hand-induction")
    ids, _ = pc.organisms.truth("compiled:hand-induction").sample(6, seed=0)
    run = model.run(ids, record=["resid_post.1", "head_out.1", "z.0"])
    by_hand = model.hf.lm_head(model.hf.transformer.ln_f(run["resid_post.1"] - run["head_out.1"][:, :, 0]))
    assert torch.allclose(ablate_edge(model, ids, Site("z", 1, 0), Site("logits")), by_hand, atol=1e-4)
    # The previous-token head is read by the keys of both heads of layer 1, and by nobody else.
    gone = model.run(ids, do=[pc.ablate("z.0.0")]).logits
    both = [ablate_edge(model, ids, Site("z", 0, 0), Site("k", 1, head)) for head in (0, 1)]
    assert not torch.allclose(both[0], gone, atol=0.1) and not torch.allclose(both[1], gone, atol=0.1)
    assert torch.allclose(ablate_edge(model, ids, Site("z", 0, 0), Site("q", 1, 0)), model.run(ids).logits, atol=0.1)


def test_resampling_takes_the_share_from_another_prompt(compiled):
    model = compiled("previous-token")
    ids, _ = model.truth.sample(5, seed=0)
    same = ids[:1].repeat(5, 1)
    edge = Site("embed"), Site("v", 0, 0)
    assert torch.equal(ablate_edge(model, same, *edge, to="resample"), model.run(same).logits)
    assert not torch.equal(ablate_edge(model, ids, *edge, to="resample"), model.run(ids).logits)
    first, again, other = (ablate_edge(model, ids, *edge, to="resample", seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert other.shape == (5, 13, 9)


@pytest.mark.parametrize(
    ("edge", "options", "error", "says"),
    [
        (("z.1.0", "k.0.0"), {}, SiteError, "no edge leads from z.1.0 to k.0.0: it reads embed, pos_embed"),
        (("embed", "z.0.0"), {}, SiteError, "readers are q, k and v of a head"),
        (("embed", "q.0.0"), {"to": "mean"}, ValueError, "'zero' or to 'resample'"),
        (("embed", "q.0.0"), {"to": "resample"}, ValueError, "there is one prompt"),
    ],
)
def test_wrong_edges_are_told_which_there_are(compiled, edge, options, error, says):
    model = compiled("induction")
    sender, reader = (model.sites(end)[0] for end in edge)
    with pytest.raises(error, match=says):
        ablate_edge(model, model.truth.sample(1)[0], sender, reader, **options)
