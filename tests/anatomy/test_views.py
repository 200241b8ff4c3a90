"""Lenses: what is put back unchanged is what was there; what is put in is what is got."""

import pytest
import torch
from torch import nn

from patchclamp.anatomy.views import EachPrompt, HeadOut, Heads, Moment, NormScale, Part, PlusResidual, Rows, Scaled

X = torch.randn(2, 5, 12)
STREAM = torch.randn(2, 5, 12)
RESHAPING = [Heads(3), Rows(), EachPrompt(), Part(2, 7)]


def moment(module: nn.Module | None = None) -> Moment:
    return Moment(module or nn.Identity(), X, STREAM, 2)


@pytest.mark.parametrize("view", RESHAPING, ids=str)
def test_reshaping_views_are_exact(view):
    at = moment()
    got = view.get(X, at)
    assert torch.equal(view.put(X, got, at), X)
    new = torch.randn_like(got)
    assert torch.equal(view.get(view.put(X, new, at), at), new)


@pytest.mark.parametrize("view", [Scaled(0.22), PlusResidual(), PlusResidual(0.22), HeadOut(3)], ids=str)
def test_computed_views_are_exact_to_rounding(view):
    at = moment(nn.Linear(12, 12))
    got = view.get(X, at)
    torch.testing.assert_close(view.put(X, got, at), X)
    if not isinstance(view, HeadOut):  # which reads the projection's input, and writes its output
        new = torch.randn_like(got)
        torch.testing.assert_close(view.get(view.put(X, new, at), at), new)


def test_the_output_moves_by_what_a_head_sends_out():
    at, view = moment(nn.Linear(12, 12)), HeadOut(3)
    got = view.get(X, at)
    bump = torch.randn(12)
    new = got.clone()
    new[:, :, 1] += bump
    torch.testing.assert_close(view.put(X, new, at) - X, bump.expand_as(X))
    torch.testing.assert_close(got.sum(2) + at.module.bias, at.module(X))


@pytest.mark.parametrize("norm", [nn.LayerNorm(12, eps=1e-3), nn.RMSNorm(12, eps=1e-3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_is_the_norms_denominator(norm, dtype):
    norm = norm.to(dtype)
    nn.init.normal_(norm.weight)
    x = X.to(dtype)
    at, view = Moment(norm, x), NormScale(isinstance(norm, nn.LayerNorm), 1e-3)
    scale = view.get(norm(x), at)
    assert scale.dtype == dtype
    torch.testing.assert_close(view.put(norm(x), scale, at), norm(x))
    bias = getattr(norm, "bias", None)
    plain = norm(x) if bias is None else norm(x) - bias
    doubled = view.put(norm(x), 2 * scale, at)
    torch.testing.assert_close(doubled if bias is None else doubled - bias, plain / 2)


def test_positions_that_all_prompts_share_come_back_for_each():
    table = torch.randn(1, 5, 12)
    assert EachPrompt().get(table, moment()).shape == (2, 5, 12)
    assert EachPrompt().get(table[0], moment()).shape == (2, 5, 12)
