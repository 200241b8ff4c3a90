"""Supervised dictionaries: recovery of planted directions, identities of the two fits, edits, detectors."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patchclamp as pc
import tiny
from patchclamp.dictionaries import Codes, Dictionary
from patchclamp.dictionaries.supervised import activations, detector_f1, fit, logits_with, sparse_edit


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def balanced():
    """Every combination of three attributes with 3, 4 and 2 values, once."""
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(2))
    return {name: grid[:, i] for i, name in enumerate("abc")}


def additive(values, seed=0):
    vectors = {name: draw(int(value.max()) + 1, 6, seed=seed + i) for i, (name, value) in enumerate(values.items())}
    return vectors, 5 + sum(vectors[name][value] for name, value in values.items())


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_least_squares_are_conditional_means_where_attributes_are_balanced(seed):
    values, x = balanced(), draw(24, 6, seed=seed)
    found, means = fit(x, values), fit(x, values, "means")
    for name in values:
        assert torch.allclose(found.vectors[name], means.vectors[name], atol=1e-10)
    assert torch.allclose(found.explain(values), means.explain(values), atol=1e-10)


def test_correlated_attributes_are_told_apart_by_least_squares_alone():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 3, (400,), generator=generator)
    b = torch.where(torch.rand(400, generator=generator) < 0.7, a, torch.randint(0, 3, (400,), generator=generator))
    values = {"a": a, "b": b}
    _, x = additive(values)
    assert torch.allclose(fit(x, values).explain(values), x, atol=1e-9)
    assert float((fit(x, values, "means").explain(values) - x).norm() / (x - x.mean(0)).norm()) > 0.3
    for vectors, value in zip(fit(x, values).vectors.values(), values.values(), strict=True):
        assert torch.allclose(vectors[value].mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-10)


def test_an_edit_gives_the_counterfactual_and_leaves_the_rest():
    values = balanced()
    vectors, x = additive(values)
    noise = draw(24, 6, seed=9)
    found = fit(x, values)
    new = {"a": (values["a"] + 1) % 3}
    expected = x + noise - vectors["a"][values["a"]] + vectors["a"][new["a"]]
    assert torch.allclose(found.edit(x + noise, {"a": values["a"]}, new), expected, atol=1e-9)
    assert torch.allclose(found.explain({"c": values["c"]}), x.mean(0) + found.vectors["c"][values["c"]])
    codes = found.codes(values)
    assert codes.indices.tolist()[7] == [0, 3 + 3, 7 + 1] and codes.width == 9
    assert torch.allclose(found.mean + codes.dense() @ found.W_dec, x, atol=1e-9)


def test_values_and_attributes_that_were_not_seen_are_refused():
    values = balanced()
    found = fit(additive(values)[1][:-8], {name: value[:-8] for name, value in values.items()})
    with pytest.raises(ValueError, match=r"values \[2\] of a were in no row"):
        found.explain(values)
    with pytest.raises(ValueError, match=r"attributes \['d'\]: there are a, b, c"):
        found.explain({"d": values["a"]})
    with pytest.raises(ValueError, match="give the same ones"):
        found.edit(draw(24, 6), {"a": values["a"]}, {"b": values["b"]})
    with pytest.raises(ValueError, match="expected 24 numbers from 0"):
        fit(draw(24, 6), {"a": values["a"][:3]})


def test_a_site_of_a_model_is_read_and_replaced():
    model = pc.wrap(tiny.build("llama"), name="tiny")
    tokens = torch.randint(3, 99, (5, 12), generator=torch.Generator().manual_seed(0))
    pos = torch.tensor([3, 11, 7, 0, 5])
    x = activations(model, tokens, "resid_post.1", pos)
    run = model.run(tokens, record="resid_post.1")
    rows = torch.arange(5)
    assert torch.equal(x, run["resid_post.1"][rows, pos])
    assert torch.allclose(logits_with(model, tokens, "resid_post.1", pos, x), run.logits[rows, pos], atol=1e-5)
    other = logits_with(model, tokens, "resid_post.1", pos, x.flip(0))
    patched = model.run(tokens, do=[pc.patch("resid_post.1", x.flip(0)[:, None], pos=pos[:, None])])
    assert torch.equal(other, patched.logits[rows, pos]) and not torch.allclose(other, run.logits[rows, pos])


def test_a_greedy_edit_is_the_best_where_directions_are_orthogonal():
    eye = torch.eye(8, dtype=torch.float64)
    dictionary = Dictionary(eye, eye.new_zeros(8), eye, eye.new_zeros(8))
    x, target = draw(6, 8).relu(), draw(6, 8, seed=1).relu()
    for k in range(4):
        found = sparse_edit(dictionary, x, target, k)
        for row in range(6):
            best = min(
                float(
                    (target[row] - x[row].where(~torch.isin(torch.arange(8), torch.tensor(some)), target[row])).norm()
                )
                for some in combinations(range(8), k)
            )
            assert float((target[row] - found.x[row]).norm()) == pytest.approx(best)
    assert torch.allclose(sparse_edit(dictionary, x, target, 8).x, target)
    same = sparse_edit(dictionary, x, x, 3)
    assert torch.equal(same.x, x) and same.latents.sum() == 0


def test_an_edit_may_be_kept_to_some_latents():
    eye = torch.eye(8, dtype=torch.float64)
    dictionary = Dictionary(eye, eye.new_zeros(8), eye, eye.new_zeros(8))
    x, target = draw(6, 8).relu(), draw(6, 8, seed=1).relu()
    among = torch.arange(8) < 3
    found = sparse_edit(dictionary, x, target, 8, among=among)
    assert torch.equal(found.x[:, 3:], x[:, 3:]) and torch.allclose(found.x[:, :3], target[:, :3])
    assert bool((found.left <= 1).all())


def test_detectors_are_scored_by_f1():
    codes = Codes(torch.tensor([[0], [0], [1], [1]]), torch.tensor([[1.0], [2.0], [1.0], [0.0]]), 3)
    found = detector_f1(codes, torch.tensor([0, 0, 1, 1]))
    assert found.tolist() == [[1.0, 0.0, 0.0], [0.0, pytest.approx(2 / 3), 0.0]]
