"""The sparse products and their gradients equal the dense ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.dictionaries.sparse import Active, decode, encode


def problem(rows, width, d, k, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.double)  # noqa: E731
    indices = torch.stack([torch.randperm(width, generator=generator)[:k] for _ in range(rows)])
    return draw(rows, d), draw(width, d), draw(width), draw(rows, d), indices


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(3, 20), st.integers(1, 7), st.integers(1, 3), st.integers(0, 10**6))
def test_encode_and_decode_equal_the_dense_products(rows, width, d, k, seed):
    x, weight, bias, target, indices = problem(rows, width, d, k, seed)
    decoder = weight.flip(0).contiguous()
    dense = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, decoder)]
    pre = dense[0] @ dense[1].t() + dense[2]
    mask = torch.zeros_like(pre).scatter(1, indices, 1.0)
    out = (pre * mask) @ dense[3]
    ((out - target) ** 2).sum().backward()

    sparse = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, decoder)]
    active = Active.of(indices, width)
    values = encode(*sparse[:3], active, pre.detach().gather(1, indices).flatten())
    again = decode(values, sparse[3], active)
    ((again - target) ** 2).sum().backward()

    assert torch.allclose(out, again)
    for a, b in zip(dense, sparse, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-9)


def test_gradients_can_be_added_in_place():
    x, weight, bias, target, indices = problem(6, 10, 4, 3, 0)
    active = Active.of(indices, 10)
    at = (x @ weight.t() + bias).gather(1, indices).flatten()
    w = weight.clone().requires_grad_()
    (decode(at, w, active) * target).sum().backward()
    into = torch.ones_like(weight)
    v = at.clone().requires_grad_()
    (decode(v, weight, active, grad=into) * target).sum().backward()
    assert torch.allclose(into - 1, w.grad)
    into.zero_()
    w = weight.clone().requires_grad_()
    (encode(x, w, bias, active, at) * at).sum().backward()
    b = bias.clone().requires_grad_()
    (encode(x, weight, b, active, at, grad=into) * at).sum().backward()
    assert torch.allclose(into, w.grad)


def test_rows_may_have_different_numbers_of_pairs():
    weight = torch.arange(12.0).reshape(4, 3)
    active = Active(torch.tensor([0, 2, 2, 3]), torch.tensor([3, 0, 1]), 4)
    out = decode(torch.tensor([1.0, 2.0, 3.0]), weight, active)
    assert torch.equal(out, torch.stack([weight[3] + 2 * weight[0], torch.zeros(3), 3 * weight[1]]))
    assert active.row.tolist() == [0, 0, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_pass_the_numerical_check(dtype):
    x, weight, bias, _, indices = problem(3, 6, 4, 2, 1)
    active = Active.of(indices, 6)

    def f(x, weight, bias):
        at = (x @ weight.t() + bias).gather(1, indices).flatten().detach()
        return decode(encode(x, weight, bias, active, at), weight, active)

    if dtype is torch.float64:
        inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        assert torch.autograd.gradcheck(f, inputs)
