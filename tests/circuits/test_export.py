"""Graph pages' JSON: every node that a link names, at its token, with the weights of its edges."""

import json

import pytest
import torch

from circuits.cases import ids_task, network
from patchclamp.circuits import Circuit, GraphError, eap, graph_json, select, write_graph
from patchclamp.circuits.graph import Graph

TOKENS = ["a", " b", " c", " d", " e", " f"]


def test_links_are_the_edges_of_the_circuit(tmp_path):
    model, task = network("llama"), ids_task()
    scores = eap(model, task)
    circuit = Circuit(scores, select(scores, 40))
    found = graph_json(circuit, tokens=TOKENS, slug="test")
    names = {node["node_id"]: node for node in found["nodes"]}
    assert all(link["source"] in names and link["target"] in names for link in found["links"])
    into = sum(link["weight"] for link in found["links"] if names[link["target"]]["is_target_logit"])
    logits = torch.tensor([reader.kind == "logits" for _, reader in circuit.graph.edges])
    assert into == pytest.approx(float(scores.values[logits & circuit.mask].sum()), rel=1e-5)
    assert {node["clerp"] for node in names.values()} >= {"embed", "logits"}
    assert found["metadata"]["prompt"] == "a b c d e f"
    write_graph(circuit, tmp_path / "graph.json", tokens=TOKENS, slug="test")
    assert json.loads((tmp_path / "graph.json").read_text(encoding="utf-8")) == found


def test_nodes_stand_at_their_tokens():
    model, task = network("llama"), ids_task()
    scores = eap(model, task, Graph.of(model, positions=6))
    circuit = Circuit(scores, select(scores, 60))
    found = graph_json(circuit, tokens=TOKENS)
    assert {node["ctx_idx"] for node in found["nodes"]} > {5}
    assert all(node["ctx_idx"] + node["reverse_ctx_idx"] == 5 for node in found["nodes"])
    with pytest.raises(GraphError, match="tokens"):
        graph_json(circuit, tokens=TOKENS[:2])
