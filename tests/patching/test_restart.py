"""Runs that begin in the middle give what whole forward passes give, by whichever way they are cut short."""

import pytest
import torch

import patchclamp as pc
from patchclamp.patching.batches import Patch, _cuts, batches
from patchclamp.patching.restart import Restart
from patchclamp.patching.sweep import Differences
from patchclamp.sites import Site
from patching import cases


def begun(name: str, *, ragged: bool = False, sites=(), **swapped):
    model, task = cases.model(name), cases.task(ragged=ragged)
    restart = Restart(model, task.corrupt, task.clean, task.mask, task.positions, sites=sites, **swapped)
    return model, task, restart


def at_answers(task, run) -> torch.Tensor:
    return task.at_answer(run.logits)


EVERY_WAY = ["gpt2", "llama", "mistral", "gemma2", "bloom", "olmo2", "lfm2", "bert", "gpt_oss", "falcon"]


@pytest.mark.parametrize("name", EVERY_WAY)
def test_a_restart_without_a_patch_is_the_base_run(name: str):
    model, task, restart = begun(name)
    expected = at_answers(task, model.run(task.corrupt))
    torch.testing.assert_close(restart.logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(restart.source_logits, at_answers(task, model.run(task.clean)), atol=1e-5, rtol=1e-5)
    for layer in range(model.n_layers):
        for start in (0, 1, cases.DIFFERS, cases.LENGTH - 1):
            logits = restart.run(layer, 3, start=start)
            torch.testing.assert_close(logits, expected[:, None].expand(logits.shape), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EVERY_WAY)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_written_stream_is_one_forward_with_one_patch(name: str, ragged: bool):
    """Directly, without the shortcuts by which a sweep settles a patch that puts in everything, or nothing."""
    model, task, restart = begun(name, ragged=ragged)
    clean = model.run(task.clean, record="resid_pre.*", attention_mask=task.mask)
    column = cases.DIFFERS + 1
    for layer in range(model.n_layers):
        site = Site("resid_pre", layer)

        def write(x: torch.Tensor, start: int, site=site) -> torch.Tensor:
            out = x.clone()
            out[:, column - start] = restart.source[site][:, column].repeat_interleave(2, 0)
            return out

        logits = restart.run(layer, 2, start=column, write=write)
        do = [pc.patch(site, clean, pos=column)]
        expected = at_answers(task, model.run(task.corrupt, do=do, attention_mask=task.mask))
        torch.testing.assert_close(logits, expected[:, None].expand(logits.shape), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon", "olmo2", "granite", "mistral"])
def test_z_is_written_without_running_attention(name: str):
    model, task = cases.model(name), cases.task()
    for layer in range(model.n_layers):
        site = Site("z", layer)
        restart = Restart(model, task.corrupt, task.clean, task.mask, task.positions, sites=[site])
        assert layer in restart._attention, f"{name} runs the attention of a block whose z is patched"

        def write(z: torch.Tensor, start: int, site=site, restart=restart) -> torch.Tensor:
            out = z.clone()
            out[:, :, 1] = restart.source[site][:, start : start + z.shape[1], 1]
            return out

        calls: list[int] = []
        core = model.anatomy.layers[""][layer].qkv[0]
        handle = model.hf.get_submodule(core).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        logits = restart.run(layer, 1, site=site, write=write)[:, 0]
        handle.remove()
        assert not calls
        do = [pc.patch(f"z.{layer}.1", model.run(task.clean, record=site))]
        torch.testing.assert_close(logits, at_answers(task, model.run(task.corrupt, do=do)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bloom", "gptj"])
def test_attention_that_returns_more_than_its_projection_is_run(name: str):
    """Bloom's attention adds the stream itself; eager attention (GPT-J here) also returns its pattern."""
    model, task = cases.model(name), cases.task()
    restart = Restart(model, task.corrupt, task.clean, task.mask, task.positions, sites=[Site("z", 1)])
    assert not restart._attention


@pytest.mark.parametrize(
    ("name", "because"),
    [("gpt2", None), ("mistral", None), ("lfm2", "more than keys"), ("bert", "read later"), ("mamba", "no past_key")],
)
def test_why_runs_begin_at_the_first_token(name: str, because: str | None):
    model, task = cases.model(name), cases.task()
    restart = Restart(model, task.corrupt, task.clean, task.mask, task.positions)
    assert restart.cacheable == (because is None)
    assert because is None or because in str(restart.whole_because)
    table = pc.patching.sweep(model, task, "resid_pre.2")
    assert ("whole_prompts_because" in table.attrs) == (because is not None)


def test_a_cache_that_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch):
    model, task, restart = begun("mistral")
    monkeypatch.setattr(
        type(restart._whole), "batch_repeat_interleave", lambda *_: (_ for _ in ()).throw(TypeError("x"))
    )
    with pytest.raises(TypeError):
        pc.patching.sweep(model, task, "resid_pre.*")


# ── patches that are settled without a run ────────────────────────────────────────────────────────────────────────────


def item(site: Site, *columns: int) -> Patch:
    return Patch(site, torch.tensor([columns] * 4), (0,), min(columns))


def test_what_a_patch_leaves_different():
    _, _, restart = begun("gpt2", sites=[Site("resid_pre", 1)])
    differences = Differences(restart, cases.DIFFERS)
    below, above = Site("resid_pre", 0), Site("resid_pre", 1)
    here, after = cases.DIFFERS, range(cases.DIFFERS, cases.LENGTH)
    assert differences.within(item(below, here)) and differences.all_of_them(item(below, here))
    assert not differences.within(item(below, here + 1))  # the same token on both sides
    assert differences.within(item(above, here + 1)) and not differences.all_of_them(item(above, here))
    assert differences.all_of_them(item(above, *after))
    assert not differences.within(item(above, here - 1))


def test_blocks_that_read_beside_the_stream_are_run(monkeypatch: pytest.MonkeyPatch):
    """A block that is also given something made of the tokens does not do what the stream alone says."""
    model, task = cases.model("llama"), cases.task()
    given: list[torch.Tensor] = []

    def embed(module, args, kwargs):
        given[:] = [model.embeddings(kwargs["input_ids"])]

    def give(module, args, kwargs):
        return args, {**kwargs, "beside": given[0]}

    handles = [model.hf.register_forward_pre_hook(embed, with_kwargs=True)]
    for layer in model.anatomy.layers[""]:
        block = model.hf.get_submodule(layer.path)

        def forward(x, *args, own=block.forward, beside, **kwargs):
            return own(x, *args, **kwargs) + beside

        monkeypatch.setattr(block, "forward", forward)
        handles.append(block.register_forward_pre_hook(give, with_kwargs=True))
    try:
        restart = Restart(model, task.corrupt, task.clean, task.mask, task.positions)
        assert not restart.closed
        table = pc.patching.sweep(model, task, "resid_pre.*", positions="all")
        whole = cases.naive(model, task, "resid_pre.*", "all")
    finally:
        for handle in handles:
            handle.remove()
    assert abs(table.values[0] - 1) > 1e-3
    torch.testing.assert_close(torch.as_tensor(table.values).ravel(), torch.as_tensor(whole), atol=1e-4, rtol=0)


# ── which patches share a forward pass ────────────────────────────────────────────────────────────────────────────────


def test_cuts_are_the_cheapest():
    def cost(cuts: list[tuple[int, int]], counts: list[int], width: list[int], column: float) -> float:
        return sum(4e8 + sum(counts[a:b]) * width[a] * column for a, b in cuts)

    counts, width = [1, 2, 1, 1, 3, 1], [12, 10, 9, 5, 4, 1]
    for column in (1e4, 2e7, 1e8, 1e10):
        found = _cuts(counts, width, column, most=100)
        assert [a for a, _ in found[1:]] == [b for _, b in found[:-1]] and found[0][0] == 0 and found[-1][1] == 6
        every = []
        for bits in range(32):
            ends = [i + 1 for i in range(5) if bits >> i & 1] + [6]
            every.append(list(zip([0, *ends[:-1]], ends, strict=True)))
        assert cost(found, counts, width, column) == pytest.approx(min(cost(c, counts, width, column) for c in every))


def test_batches_hold_every_patch_once_within_memory():
    _, _, restart = begun("llama")
    patches = [item(Site("resid_pre", layer), p) for layer in range(3) for p in range(cases.DIFFERS, cases.LENGTH)]
    for memory, most in ((1.0, 6), (1e-9, 1)):
        found = batches(restart, patches, memory)
        assert sorted((p.site.layer, p.first) for b in found for p in b) == [(p.site.layer, p.first) for p in patches]
        assert all(len({p.site for p in b}) == 1 for b in found)
        assert max(map(len, found)) == most
