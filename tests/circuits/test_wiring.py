"""A network taken apart at its edges is the network: all kept, all cut, half kept; gradients are derivatives."""

import pytest
import torch

import patchclamp as pc
from circuits.cases import ids_task, network
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.wiring import Wiring, sides

ARCHITECTURES = [
    "gpt2",
    "gptj",
    "gpt_neox",
    "bloom",
    "falcon",
    "llama",
    "qwen3",
    "gemma2",
    "olmo2",
    "cohere",
    "granite",
]
ARCHITECTURES += ["mixtral", "qwen3_moe", "gpt_oss", "mamba", "lfm2"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_kept_is_the_clean_run_and_all_cut_the_other(name):
    model, task = network(name), ids_task(padded=name not in ("mamba", "lfm2"))
    graph = Graph.of(model)
    side = next(sides(model, graph, task))
    clean, corrupt = (
        task.at_answer(model.run(ids, attention_mask=task.mask).logits) for ids in (task.clean, task.corrupt)
    )
    one = torch.ones(len(graph.senders), len(graph.readers), 1)
    with torch.no_grad():
        kept, cut = (side.wiring.run(keep=one * share, other=side.other).logits for share in (1, 0))
    for made, wanted in ((side.clean.logits, clean), (kept, clean), (cut, corrupt)):
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(clean, corrupt, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gemma2", "llama"])
def test_a_mask_that_is_differentiated_gives_the_numbers_of_one_that_is_not(name):
    model, task = network(name), ids_task()
    graph = Graph.of(model, positions=6)
    side = next(sides(model, graph, task))
    shape = len(graph.senders), len(graph.readers), len(graph.places)
    keep = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    with torch.no_grad():
        fixed = side.wiring.run(keep=keep, other=side.other).logits
    free = side.wiring.run(keep=keep.clone().requires_grad_(), other=side.other).logits
    torch.testing.assert_close(fixed, free)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "olmo2", "llama"])
def test_gradients_are_the_derivatives_by_the_share_that_an_edge_keeps(name):
    model, task = network(name), ids_task()
    graph = Graph.of(model)
    side = next(sides(model, graph, task))
    run = side.wiring.run(nudged=True)
    dots = side.wiring.dots(side.clean.sent - side.other, run.gradients(run.logits[:, 7].sum())[0])
    keep = torch.ones(*dots.shape, dtype=torch.double, requires_grad=True)
    (wanted,) = torch.autograd.grad(side.wiring.run(keep=keep, other=side.other).logits[:, 7].sum(), keep)
    torch.testing.assert_close(graph.vector(dots), graph.vector(wanted))
    assert dots.abs().max() > 1e-3


def test_layers_below_need_not_run_again():
    model, task = network("llama"), ids_task()
    graph = Graph.of(model)
    side = next(sides(model, graph, task))
    keep = torch.ones(len(graph.senders), len(graph.readers), 1, dtype=torch.double)
    keep[:, [n for n, site in enumerate(graph.readers) if site.layer in (None, 2)]] = 0
    with torch.no_grad():
        whole = side.wiring.run(keep=keep, other=side.other)
        upper = side.wiring.run(keep=keep, other=side.other, before=side.clean, first=2)
    torch.testing.assert_close(whole.logits, upper.logits)


def test_the_mean_is_that_of_all_prompts_by_position():
    model, task = network("llama"), ids_task(5, padded=True)
    graph = Graph.of(model)
    parts = list(sides(model, graph, task, ablation="mean", batch=2))
    assert [len(part.task) for part in parts] == [2, 2, 1]
    sent = Wiring(model, graph, task, task.corrupt).run().sent
    torch.testing.assert_close(parts[0].other[:, 0, :5], sent.mean(1)[:, :5])
    torch.testing.assert_close(parts[0].other[:, 0, 5], sent[:, 1:, 5].mean(1))
    with pytest.raises(ValueError, match="resample"):
        next(sides(model, graph, task, ablation="noise"))


def test_the_model_is_left_as_it_was():
    model, task = network("gpt2"), ids_task()
    before = model.run(task.clean).logits
    next(sides(model, Graph.of(model), task)).wiring.run(nudged=True)
    assert torch.equal(model.run(task.clean).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.hf.modules())
    assert isinstance(model, pc.Model)
