"""Nodes and edges of architectures; masks, paths, places; what has no graph says why."""

import networkx as nx
import pytest
import torch

import patchclamp as pc
from circuits.cases import ids_task, network
from patchclamp.circuits.graph import Graph, GraphError, sites_of
from patchclamp.organisms.compiled.edges import edges as compiled_edges
from patchclamp.sites import Site, SiteError


def test_edges_are_those_of_the_known_circuits():
    model = pc.load("organism:compiled:induction")
    graph = Graph.of(model)
    assert set(graph.edges) == set(compiled_edges(model))
    truth = pc.organisms.truth("compiled:induction").edges
    assert set(graph.chosen(graph.mask(truth))) == truth


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        ("gptj", ("z.0.1", "mlp_in.1"), ("z.1.1", "mlp_in.1")),  # parallel: the MLP does not read the heads beside it
        ("gpt2", ("z.1.1", "mlp_in.1"), ("mlp_out.1", "mlp_in.1")),
        ("llama", ("mlp_out.0", "k.1.1"), ("z.2.0", "q.2.0")),
        ("mixtral", ("embed", "mlp_in.0"), ("mlp_out.0", "v.0.0")),
        ("lfm2", ("embed", "attn_in.0"), ("attn_out.0", "attn_in.0")),
        ("bloom", ("resid_pre.0", "q.0.0"), ("mlp_out.2", "v.2.0")),
    ],
)
def test_who_reads_whom(name, has, has_not):
    def site(text):
        kind, *rest = text.split(".")
        return Site(kind, *map(int, rest))

    graph = Graph.of(network(name))
    assert tuple(map(site, has)) in graph.index
    assert tuple(map(site, has_not)) not in graph.index


def test_heads_that_share_a_key_share_its_reader():
    graph = Graph.of(network("llama"))
    assert graph.node_of(Site("k", 1, 1)) == (Site("z", 1, 2), Site("z", 1, 3))
    assert graph.node_of(Site("q", 1, 1)) == (Site("z", 1, 1),)
    assert graph.node_of(Site("mlp_in", 1)) == (Site("mlp_out", 1),)
    assert graph.node_of(Site("logits")) == ()


def test_matrix_and_vector_are_inverse():
    graph = Graph.of(network("llama"), positions=4)
    values = torch.randn(graph.shape)
    assert torch.equal(graph.vector(graph.matrix(values)), values)
    with pytest.raises(GraphError, match="shape"):
        graph.matrix(values[:, 0])


def test_only_what_lies_on_a_path_is_connected():
    graph = Graph.of(network("gpt2"))
    embed, head, mlp, logits = Site("embed"), Site("z", 1, 2), Site("mlp_out", 2), Site("logits")
    path = [(embed, Site("k", 1, 2)), (head, Site("mlp_in", 2)), (mlp, logits)]
    assert set(graph.chosen(graph.connected(graph.mask(path)))) == set(path)
    dangling = [(Site("z", 0, 0), Site("mlp_in", 2)), (embed, Site("q", 2, 0)), (Site("z", 2, 1), logits)]
    assert set(graph.chosen(graph.connected(graph.mask([*path, *dangling])))) == set(path)
    assert not graph.connected(graph.mask(path[1:])).any()
    assert bool(graph.connected(torch.ones(graph.shape, dtype=torch.bool)).all())


def test_places_are_roles_or_positions():
    model = pc.load("organism:tales")
    task = pc.tasks.ioi(model, n=4, seed=0)
    graph = Graph.of(model, positions=task)
    place = graph.place(task)
    assert graph.places[-1] == "other" and graph.shape == (len(graph.edges), len(task.labels) + 1)
    for row, where in enumerate(task.labels["S2"].tolist()):
        assert graph.places[place[row, where]] == "S2"
    with pytest.raises(GraphError, match="S1"):
        graph.place(ids_task())
    assert Graph.of(model, positions=20).place(task)[0].tolist() == list(range(task.clean.shape[1]))
    with pytest.raises(GraphError, match="positions"):
        Graph.of(model, positions=3).place(task)


def test_the_graph_comes_back_from_json_and_goes_to_networkx():
    graph = Graph.of(network("llama"))
    again = Graph.from_dict(graph.to_dict())
    assert again == graph
    found = graph.to_networkx(torch.arange(len(graph.edges)).float())
    assert nx.is_directed_acyclic_graph(found)
    assert found.edges["embed", "z.0.0", "q.0.0"]["weight"] == graph.index[Site("embed"), Site("q", 0, 0)]


@pytest.mark.parametrize(
    ("name", "why"), [("bert", "ends in a norm"), ("t5", "two streams"), ("vit", "logits for tokens")]
)
def test_what_has_no_graph_says_why(name, why):
    with pytest.raises(GraphError, match=why):
        Graph.of(pc.wrap(network(name).hf, name=name))


def test_an_edge_that_is_none_is_refused_with_those_there_are():
    graph = Graph.of(network("gpt2"))
    with pytest.raises(GraphError, match=r"z.2.0 to q.0.0: it reads embed, pos_embed"):
        graph.mask([(Site("z", 2, 0), Site("q", 0, 0))])
    model = network("gpt2")
    assert sites_of(["z.1.*", "logits"], model, [*graph.senders, Site("logits")])[-1] == Site("logits")
    with pytest.raises(SiteError):
        sites_of(["q.1.0"], model, graph.senders)
