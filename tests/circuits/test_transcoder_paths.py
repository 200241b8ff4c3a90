"""Features as sums of features: identities on random networks, for each layer, for some, and across layers."""

import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.circuits.paths import PathError
from patchclamp.circuits.transcoder_paths import Feature, de_embed, find_paths, freeze, terms
from patchclamp.dictionaries import CrossLayerTranscoder, Dictionary

IDS = torch.randint(3, 99, (1, 7), generator=torch.Generator().manual_seed(0))


def draw(seed):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g) * 0.4


def transcoders(kind: str):
    d = draw(1)
    if kind == "across layers":
        return CrossLayerTranscoder(
            d(3, 40, 32),
            d(3, 40),
            [d(40 * (m + 1), 32) for m in range(3)],
            d(3, 32),
            b_in=d(3, 32),
            W_skip=d(3, 32, 32),
        )
    layers = (0, 2) if kind == "some layers" else (0, 1, 2)
    return {i: Dictionary(d(40, 32), d(40), d(40, 32), d(32), b_in=d(32), W_skip=d(32, 32)) for i in layers}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["each layer", "some layers", "across layers"])
def test_a_pre_activation_is_the_sum_of_its_terms(name, kind):
    model, found = pc.wrap(tiny.build(name)), transcoders(kind)
    frozen = freeze(model, IDS, found)
    x = model.run(IDS, record="mlp_in.2")["mlp_in.2"][0]
    for latent, pos in ((0, -1), (7, 3)):
        sums = terms(frozen, Feature(2, pos, latent))
        if kind == "across layers":
            own = (x[pos] - found.b_in[2]) @ found.W_enc[2, latent] + found.b_enc[2, latent]
        else:
            own = found[2].pre_activations(x)[pos, latent]
        assert abs(sums.total - float(own)) < 1e-5 and abs(sums.gap) < 1e-5
        assert {"feature", "head", "embed", "error", "bias", "skip"} <= set(sums.by_kind())
        without = sums.total - sums.by_kind()["error"]
        assert abs(without - sums.total) > 1e-3  # the sum would miss it


def test_paths_are_products_of_activations_and_weights():
    model, found = pc.wrap(tiny.build("llama")), transcoders("each layer")
    frozen = freeze(model, IDS, found)
    target = Feature(2, 6, int(frozen.codes[2].indices[6][0]))
    circuit = find_paths(frozen, target, top=2000, branch=2000, depth=1)
    direct = {path.nodes[0]: path.contribution for path in circuit.paths}
    sums = dict(terms(frozen, target).rows)
    for node, value in direct.items():
        assert value == pytest.approx(sums[node], abs=1e-12)
    assert circuit.pruned == pytest.approx(frozen.reading(target)[1], abs=1e-6)  # all but the constant was listed
    deeper = find_paths(frozen, target, top=4000, branch=4000, depth=2)
    # What comes to a feature's pre-activation passes on to the target in proportion.
    source = next(p.nodes[0] for p in circuit.paths if p.nodes[0].kind == "feature" and p.nodes[0].layer == 1)
    own = terms(frozen, Feature(source.layer, source.pos, source.unit))
    slope = direct[source] / frozen.activation(Feature(source.layer, source.pos, source.unit))
    through = {p.nodes[0]: p.contribution for p in deeper.paths if len(p.nodes) == 2 and p.nodes[1] == source}
    assert through
    for node, value in through.items():
        assert value == pytest.approx(slope * dict(own.rows)[node], abs=1e-9)


def test_a_logit_is_a_target_too_and_paths_merge_into_a_graph():
    model = pc.wrap(tiny.build("llama"))
    frozen = freeze(model, IDS, transcoders("each layer"))
    circuit = find_paths(frozen, answer=5, wrong=9, top=5, depth=3, keep=lambda node: node.kind in ("feature", "head"))
    logits = model.run(IDS).logits[0, -1]
    assert circuit.total == pytest.approx(float(logits[5] - logits[9]), abs=1e-5)
    assert len(circuit.paths) == 15 and len(circuit.rows()) == 15 and circuit.features
    graph = circuit.to_networkx()
    assert graph.number_of_edges() == len(circuit.edges) and circuit.target in graph


def test_de_embedding_says_which_tokens_fire_a_feature():
    """In layer 0, without attention, a token fires a feature by its de-embedding over its own norm."""
    model, found = pc.wrap(tiny.build("llama")), transcoders("each layer")
    run = model.run(IDS, record=["mlp_in.0", "ln2_scale.0", "embed"], do=pc.ablate("attn_out.0"))
    expected = (
        found[0].pre_activations(run["mlp_in.0"])[0, :, 3] - found[0].b_enc[3] + found[0].b_in @ found[0].W_enc[3]
    )
    values = de_embed(model, found, 0, 3)[IDS[0]] / run["ln2_scale.0"][0].double()
    torch.testing.assert_close(values.float(), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused():
    model, found = pc.wrap(tiny.build("llama")), transcoders("some layers")
    frozen = freeze(model, IDS, found)
    with pytest.raises(LookupError, match="no transcoder"):
        terms(frozen, Feature(1, 0, 0))
    with pytest.raises(IndexError, match="7 tokens"):
        terms(frozen, Feature(2, 7, 0))
    with pytest.raises(ValueError, match="not both"):
        find_paths(frozen)
    with pytest.raises(PathError):
        freeze(pc.wrap(tiny.build("gpt_neox")), IDS, found)
