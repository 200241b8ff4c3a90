"""The measures are exact where the answer is known: on compiled networks, on wrong alignments, on random weights."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2LMHeadModel

import patchclamp as pc
from patchclamp.organisms.circuit_planted.measures import (
    draw_origins,
    edge_effects,
    interchange_accuracy,
    node_effects,
    run_exchanged,
    spare,
    spare_accuracy,
)
from patchclamp.organisms.compiled.written import build
from patchclamp.sites import Site

NAME = "planted-circuit:bracket-balance"


@pytest.mark.parametrize("name", ["compiled:last-repeated", "compiled:bracket-depth", "compiled:fraction"])
def test_compiled_networks_agree_with_their_programs_whatever_is_exchanged(name):
    model = build(name)
    found = interchange_accuracy(model, model.truth, n=64)
    assert set(found) == {str(site) for site in model.truth.nodes} | {"all"}
    for score in found.values():
        assert (score.right, score.changed) == (1, 1)
        assert score.share_changed > 0.1
    assert spare_accuracy(model, model.truth, n=64) == 1


def test_effects_in_a_compiled_network_are_those_of_its_circuit():
    model = build("compiled:last-repeated")
    nodes = node_effects(model, model.truth, n=64)
    assert {site for site, effect in nodes.items() if effect > 0} == model.truth.nodes
    edges = edge_effects(model, model.truth, n=32)
    assert {edge for edge, effect in edges.items() if effect > 0} <= model.truth.edges


def test_origins_are_of_the_first_half_and_at_the_asked_places():
    tokens, site = torch.zeros(400, 10, dtype=torch.long), Site("z", 0, 0)
    own = torch.arange(400)[:, None].expand(400, 10)

    def draw(share, partly):
        return draw_origins([site], tokens, share=share, partly=partly, generator=torch.Generator().manual_seed(0))[
            site
        ]

    assert torch.equal(draw(0, 0), own)
    whole = draw(1, 0)
    assert torch.equal(whole[:200], own[:200])
    assert (whole[200:] < 200).all() and (whole == whole[:, :1]).all()
    half = (draw(1, 1) != own)[200:]
    assert 0.45 < half.float().mean() < 0.55
    some = (draw(0.3, 0) != own)[200:].all(1)
    assert 0.2 < some.float().mean() < 0.4


def test_an_exchange_gives_what_a_patch_from_another_run_gives():
    model = pc.load(f"organism:{NAME}")
    tokens = pc.organisms.truth(NAME).sample(8, seed=0)[0]
    own = torch.arange(8)[:, None].expand(tokens.shape)
    origin = own.flip(0).clone()
    origin[:, :4] = own[:, :4]
    sites = [Site("z", 0, 3), Site("mlp_out", 1), Site("k", 1, 0)]
    for site in sites:
        source = model.run(tokens, record=str(site.whole))
        put = source[str(site.whole)].flip(0)
        put = put if site.unit is None else put[:, :, site.unit]
        patched = model.run(tokens, do=[pc.patch(str(site), put[:, 4:], pos=slice(4, None))]).logits
        with torch.no_grad():
            found = run_exchanged(model, tokens, {site: origin})
        torch.testing.assert_close(found, patched, msg=str(site))


def test_a_wrong_alignment_and_random_weights_fail():
    model, truth = pc.load(f"organism:{NAME}"), pc.organisms.truth(NAME)
    moved = truth.alignment | {"lead": Site("z", 0, 1)}
    wrong = replace(truth, alignment=moved, nodes=truth.nodes - {Site("z", 0, 3)} | {Site("z", 0, 1)})
    scores = interchange_accuracy(model, wrong, n=128)
    assert scores["z.0.1"].changed < 0.05  # a spare head changes nothing, and the program's answer has changed
    assert scores["mlp_out.0"].right == 1  # what is aligned as it was is right as it was
    assert spare_accuracy(model, wrong, n=128) < 0.9
    assert Site("z", 0, 3) in spare(model, wrong)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random = pc.wrap(GPT2LMHeadModel(model.hf.config).eval())
    assert all(score.right < 0.6 for score in interchange_accuracy(random, truth, n=64).values())


def test_a_truth_without_a_program_is_refused():
    model, truth = pc.load(f"organism:{NAME}"), replace(pc.organisms.truth(NAME), program=None)
    with pytest.raises(ValueError, match=f"the truth of '{NAME}' has no program with an alignment"):
        spare_accuracy(model, truth)
