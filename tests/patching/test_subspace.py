"""Subspace patches: their algebra, their split by what reads them, and searches that find a known direction."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import patchclamp as pc
from patchclamp.interventions import InterventionError
from patchclamp.patching import (
    Pairs,
    Subspace,
    das,
    gradient_direction,
    mean_direction,
    random_direction,
    rank_one_edit,
)
from patchclamp.patching.subspace import readout
from patchclamp.sites import Site, SiteError
from patching import cases


@pytest.mark.parametrize("site", ["mlp_post.1", "z.1", "z.1.2", "resid_post.1"])
def test_a_subspace_and_its_complement_make_the_whole_patch(site):
    model, task = cases.model("gpt2"), cases.task()
    pairs = Pairs.of(model, task)
    source = pairs.activations(site)[1]
    some = random_direction(pairs, site, rank=3, seed=0)
    width = some.basis.shape[1]
    rest = torch.linalg.svd(some.basis)[2][3:]
    both = [some.patch(source), Subspace(some.site, rest).patch(source)]
    whole = model.run(pairs.base, do=[pc.patch(site, source)]).logits
    assert torch.allclose(model.run(pairs.base, do=both).logits, whole, atol=1e-5)
    assert torch.allclose(
        model.run(pairs.base, do=[Subspace(some.site, torch.eye(width)).patch(source)]).logits, whole, atol=1e-5
    )


def test_only_the_component_along_the_direction_changes_and_only_where_asked():
    model, task = cases.model("llama"), cases.task(ragged=True)
    pairs = Pairs.of(model, task)
    base, source = pairs.activations("resid_post.1")
    v = random_direction(pairs, "resid_post.1", seed=1)
    do = [v.patch(source, pos=-1)]
    got = model.run(pairs.base, record="resid_post.1", do=do, attention_mask=task.mask)["resid_post.1"]
    at = torch.arange(len(task)), task.positions
    assert torch.allclose(got[at] @ v.basis[0], source[at] @ v.basis[0], atol=1e-5)
    off = got[at] - base[at]
    assert torch.allclose(off - (off @ v.basis[0])[:, None] * v.basis[0], torch.zeros_like(off), atol=1e-5)
    got[at] = base[at]
    assert torch.equal(got, base)


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 4), width=st.integers(5, 12), out=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_split_is_orthogonal_and_the_null_part_is_not_read(rank, width, out, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(width, out, generator=generator)
    basis = torch.linalg.qr(torch.randn(width, rank, generator=generator))[0].T
    row, null = Subspace(Site("mlp_post", 0), basis).split(matrix)
    parts = [part.basis for part in (row, null) if part is not None]
    if null is not None:
        assert float((null.basis @ matrix).abs().max()) < 1e-5
    for part in parts:
        assert torch.allclose(part @ part.T, torch.eye(len(part)), atol=1e-5)
    if row is not None and null is not None:
        assert float((row.basis @ null.basis.T).abs().max()) < 1e-5
    spanned = torch.cat(parts)
    assert torch.allclose(basis @ torch.linalg.pinv(spanned) @ spanned, basis, atol=1e-4)


def test_readouts_are_what_reads_the_site():
    model = cases.model("llama")
    tokens = torch.arange(5)[None] + 3
    run = model.run(
        tokens, record=["mlp_post.1", "mlp_out.1", "z.1", "attn_out.1", "mlp_in.1", "mlp_pre.1", "mlp_gate.1"]
    )
    assert torch.allclose(run["mlp_post.1"] @ readout(model, "mlp_post.1"), run["mlp_out.1"], atol=1e-5)
    assert torch.allclose(run["z.1"].flatten(2) @ readout(model, "z.1"), run["attn_out.1"], atol=1e-5)
    made = torch.cat([run["mlp_pre.1"], run["mlp_gate.1"]], -1)
    assert torch.allclose(run["mlp_in.1"] @ readout(model, "mlp_in.1"), made, atol=1e-5)
    assert readout(model, "attn_in.1").shape == (32, 4 * 8 + 2 * 2 * 8)
    assert readout(model, "z.1.3").shape == (8, 32) and readout(model, "resid_post.1") is None
    with pytest.raises(SiteError, match="give readout"):
        readout(model, "q.1")


class Hidden(nn.Module):
    """y = 3 u.h, h = c u + noise: one direction u carries c, and a search must find it."""

    def __init__(self):
        super().__init__()
        self.h, self.read = nn.Identity(), nn.Linear(6, 1, bias=False)
        generator = torch.Generator().manual_seed(0)
        self.u = nn.functional.normalize(torch.randn(6, generator=generator), dim=0)
        with torch.no_grad():
            self.read.weight.copy_(3 * self.u[None])

    def forward(self, x):
        return self.read(self.h(x))


def hidden() -> tuple[Pairs, torch.Tensor]:
    model = pc.wrap(Hidden())
    generator = torch.Generator().manual_seed(1)
    base, source = torch.randn(2, 40, 6, generator=generator)
    return Pairs(model, base, source, measure=lambda y: y[:, 0]), model.hf.u


def test_search_and_gradient_find_the_direction_that_is_read():
    pairs, u = hidden()
    for found in (das(pairs, "module:h", steps=150, seed=3), gradient_direction(pairs, "module:h")):
        assert abs(float(found.basis[0] @ u)) > 0.999
    again = das(pairs, "module:h", steps=150, seed=3)
    assert torch.equal(again.basis, das(pairs, "module:h", steps=150, seed=3).basis)
    state = torch.random.get_rng_state()
    random_direction(pairs, "module:h", seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert abs(float(random_direction(pairs, "module:h", seed=5).basis[0] @ u)) < 0.9


def test_the_difference_of_means_points_from_base_to_source():
    model = pc.wrap(Hidden())
    base = torch.randn(50, 6, generator=torch.Generator().manual_seed(2)) * 0.01
    labels = torch.where(torch.arange(50) % 2 == 0, 1.0, -1.0)
    pairs = Pairs(model, base, base + labels[:, None] * model.hf.u, measure=lambda y: y[:, 0])
    assert float(mean_direction(pairs, "module:h", labels=labels).basis[0] @ model.hf.u) > 0.999


@pytest.mark.parametrize("spread", [False, True])
def test_a_rank_one_edit_does_to_its_input_what_the_patch_does(spread):
    generator = torch.Generator().manual_seed(0)
    matrix, base, source = (torch.randn(*shape, generator=generator).double() for shape in ((7, 4), (7,), (7,)))
    v = Subspace(Site("mlp_post", 0), torch.linalg.qr(torch.randn(7, 2, generator=generator).double())[0].T)
    others = torch.randn(30, 7, generator=generator).double() * torch.tensor([5.0, 1, 1, 1, 1, 1, 1])
    covariance = others.T @ others if spread else None
    change = rank_one_edit(matrix, base, source, v, covariance=covariance)
    patched = base + (source - base) @ v.basis.T @ v.basis
    assert torch.allclose(base @ (matrix + change), patched @ matrix, atol=1e-10)
    assert int(torch.linalg.matrix_rank(change)) == 1
    if spread:  # the form with a covariance disturbs other inputs less
        plain = rank_one_edit(matrix, base, source, v)
        assert float((others @ change).norm()) < float((others @ plain).norm())


def test_errors_say_what_was_meant():
    model, task = cases.model("gpt2"), cases.task()
    pairs = Pairs.of(model, task)
    v = random_direction(pairs, "mlp_post.1")
    with pytest.raises(InterventionError, match="same layout"):
        model.run(task.clean[:2], do=[v.patch(pairs.activations("mlp_post.1")[1])])
    with pytest.raises(ValueError, match="zeros"):
        Subspace.spanned("mlp_post.1", torch.zeros(128), model)
    with pytest.raises(SiteError, match="no dimension of features"):
        random_direction(pairs, "pattern.1")
    same = Pairs.of(model, task)
    same.__dict__["source_values"] = same.base_values
    with pytest.raises(ValueError, match="nothing to search"):
        das(same, "mlp_post.1", steps=1)
