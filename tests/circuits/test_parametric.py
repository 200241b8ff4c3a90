"""The laws of parametric linear maps, as properties over random shapes and weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.circuits.parametric import CompositionError, add, compose, identity, linear, paths, residual, tensor

sizes = st.integers(1, 4)
seeds = st.integers(0, 10_000)


def draw(seed, *maps):
    """Weights for every parameter of the maps, and one vector for each."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: shape for m in maps for name, shape in m.parameters.items()}
    weights = {name: torch.randn(*shape, generator=generator, dtype=torch.double) for name, shape in shapes.items()}
    return weights, [torch.randn(*m.source, generator=generator, dtype=torch.double) for m in maps]


def same(left, right, seed):
    assert (left.source, left.target) == (right.source, right.target)
    weights, (x, _) = draw(seed, left, right)
    torch.testing.assert_close(left(x, weights), right(x, weights), rtol=0, atol=1e-10)


@given(sizes, sizes, sizes, sizes, seeds)
def test_composition_is_associative_and_unital(a, b, c, d, seed):
    f, g, h = linear("f", b, a), linear("g", c, b), linear("h", d, c)
    same((f >> g) >> h, f >> (g >> h), seed)
    same(compose(identity(a), f), f, seed)
    same(compose(f, identity(b)), f, seed)


@given(sizes, sizes, sizes, sizes, seeds)
def test_tensor_and_composition_interchange(a, b, c, d, seed):
    f, g, h, k = linear("f", b, a), linear("g", c, b), linear("h", d, c), linear("k", a, d)
    same((f @ h) >> (g @ k), (f >> g) @ (h >> k), seed)
    same(identity(a) @ identity(b), identity(a, b), seed)


@given(sizes, sizes, sizes, seeds)
def test_composition_distributes_over_sums(a, b, c, seed):
    f, g, h = linear("f", b, a), linear("g", b, a), linear("h", c, b)
    same((f + g) >> h, (f >> h) + (g >> h), seed)


@given(sizes, sizes, seeds)
def test_the_tensor_of_two_maps_is_a_x_wt(positions, d, seed):
    moved = linear("A", positions, positions) @ linear("W", d, d)
    weights, (x,) = draw(seed, moved)
    torch.testing.assert_close(moved(x, weights), weights["A"] @ x @ weights["W"].T, rtol=0, atol=1e-10)


@given(st.integers(1, 3), st.integers(0, 2), seeds)
def test_the_paths_of_a_stack_sum_to_it(layers, heads, seed):
    stack = identity(3, 2)
    for layer in range(layers):
        inner = [linear(f"A{layer}{h}", 3, 3) @ linear(f"W{layer}{h}", 2, 2) for h in range(heads)]
        if inner:
            total = inner[0]
            for more in inner[1:]:
                total = add(total, more)
            stack = stack >> residual(total)
    found = paths(stack)
    assert len(found) == (1 + heads) ** layers
    assert len({str(path) for path in found}) == len(found)
    weights, (x,) = draw(seed, stack)
    whole = sum(path(x, weights) for path in found)
    torch.testing.assert_close(whole, stack(x, weights), rtol=0, atol=1e-10)


def test_the_parameter_space_of_a_composite_is_the_product():
    f, g = linear("f", 3, 2), linear("g", 4, 3)
    assert compose(f, g).parameters == {"f": (3, 2), "g": (4, 3)}
    assert compose(f, g).dimension == f.dimension + g.dimension == 18
    assert tensor(f, g).dimension == 18
    assert residual(linear("w", 2, 2) >> linear("w", 2, 2)).dimension == 4  # tied: one parameter


def test_what_does_not_fit_is_refused_with_both_spaces():
    f, g = linear("f", 3, 2), linear("g", 5, 4)
    with pytest.raises(CompositionError, match=r"f ends in \[3\], but g begins in \[4\]"):
        compose(f, g)
    with pytest.raises(CompositionError, match="only maps between the same spaces"):
        add(f, g)
    with pytest.raises(CompositionError, match="no residual"):
        residual(f)
    with pytest.raises(CompositionError, match=r"takes a vector of shape \[2\], not \[3\]"):
        f(torch.ones(3), {"f": torch.ones(3, 2)})
    with pytest.raises(CompositionError, match=r"not \[2, 3\]"):
        f(torch.ones(2), {"f": torch.ones(2, 3)})
    with pytest.raises(KeyError, match="no weights for f"):
        f(torch.ones(2), {"g": torch.ones(3, 2)})
    with pytest.raises(CompositionError, match="in one place"):
        _ = compose(linear("f", 3, 2), linear("f", 4, 3)).parameters
