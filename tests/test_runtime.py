"""Nothing that we do to a model changes it: numbers, weights, hooks, configuration, modes, threads."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import patchclamp as pc
import tiny
from patchclamp.model import Model, wrap
from patchclamp.runtime import NeverFired

DICTIONARIES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def inputs_of(name: str, hf: nn.Module) -> dict:
    from patchclamp.anatomy.discover import trial_inputs

    return trial_inputs(hf, seed=3)


def state(hf: nn.Module) -> tuple:
    """Everything that a run could leave changed."""
    hooks = {path: [dict(getattr(m, name)) for name in DICTIONARIES] for path, m in hf.named_modules()}
    weights = {key: value.clone() for key, value in hf.state_dict().items()}
    config = copy.deepcopy(hf.config.to_dict()) if hasattr(hf, "config") else None
    flags = [m.training for m in hf.modules()]
    own = {path: set(vars(m)) for path, m in hf.named_modules()}
    implementation = getattr(getattr(hf, "config", None), "_attn_implementation", None)
    return hooks, weights, config, flags, own, implementation, len(_get_current_function_mode_stack())


def same(a: tuple, b: tuple) -> bool:
    weights = a[1].keys() == b[1].keys() and all(torch.equal(a[1][key], b[1][key]) for key in a[1])
    return weights and a[0] == b[0] and a[2:] == b[2:]


def gpt2() -> Model:
    return wrap(tiny.build("gpt2"))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_recording_leaves_every_bit_of_the_output(name, implementation):
    hf = tiny.build(name)
    try:
        hf.set_attn_implementation(implementation)
    except ValueError:
        pytest.skip(f"{name} has no {implementation} attention")
    model, given = wrap(hf), inputs_of(name, hf)
    with torch.no_grad():
        bare = hf(**given)[0]
    model.anatomy
    before = state(hf)
    calm = [site for site in model.sites() if not site.kind.endswith(("scores", "pattern"))]
    run = model.run(given, record=calm)
    assert torch.equal(run.output[0], bare)
    watched = model.run(given, record=model.sites())
    torch.testing.assert_close(watched.output[0], bare, rtol=1e-5, atol=1e-5)
    stopped = model.run(given, record=calm[: len(calm) // 2], stop=True)
    for site in stopped.recording:
        assert torch.equal(stopped[site], run[site])
    assert same(state(hf), before)


@pytest.mark.parametrize("where", ["embed", "k.1", "scores.1", "pattern.1", "z.1", "mlp_post.2", "logits"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_an_edit_leaves_nothing_behind(where, error):
    model = gpt2()
    model.anatomy
    before = state(model.hf)

    def fail(x):
        raise error("from the edit")

    with pytest.raises(error):
        model.run(IDS, do=pc.edit(where, fail), record=["pattern.*", "resid_post.*"])
    with pytest.raises(error):
        model.generate(IDS, do=pc.edit(where, fail), max_new_tokens=2)
    assert same(state(model.hf), before)
    assert torch.equal(model.run(IDS).logits, model.hf(IDS).logits)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_the_model_leaves_nothing_behind(error):
    model = gpt2()

    def fail(*_):
        raise error("from the model")

    model.anatomy
    model.hf.transformer.h[1].attn.register_forward_hook(fail)
    before = state(model.hf)
    with pytest.raises(error):
        model.run(IDS, record="pattern.*")
    with pytest.raises(error), model.under(record="pattern.*"):
        model.hf(IDS)
    assert same(state(model.hf), before)


def test_an_interruption_that_the_caller_catches_leaves_no_mode_in_the_next_pass():
    model = gpt2()
    model.anatomy
    calls = []

    def fail_once(x):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return x

    with model.under(do=pc.edit("scores.1", fail_once), record="pattern.*") as run:
        with pytest.raises(KeyboardInterrupt):
            model.hf(IDS)
        model.hf(IDS)
        assert len(_get_current_function_mode_stack()) == 0
    torch.testing.assert_close(run["pattern.1"], model.run(IDS, record="pattern.1")["pattern.1"])


def test_the_users_own_hooks_survive_and_still_run():
    model = gpt2()
    model.anatomy
    seen = []
    block = model.hf.transformer.h[1]
    block.register_forward_hook(lambda mod, args, out: seen.append(1))
    block.register_forward_pre_hook(lambda mod, args: seen.append(2))
    model.run(IDS, record="resid_post.*", do=pc.scale("z.1.0", 2.0))
    with pytest.raises(ValueError):
        model.run(IDS, do=pc.add("z.1", torch.zeros(3)))
    model.hf(IDS)
    assert seen.count(1) == 2 and seen.count(2) == 3  # the failing run ended inside the block
    assert len(block._forward_hooks) == len(block._forward_pre_hooks) == 1


def test_output_hidden_states_works_after_us_and_under_us():
    model = gpt2()
    run = model.run(IDS, record=["resid_pre.*", "resid_post.2", "final_norm"])
    hidden = model.hf(IDS, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(hidden[layer], run[f"resid_pre.{layer}"])
    assert torch.equal(hidden[3], run["final_norm"])
    with model.under(record="resid_post.0") as under:
        again = model.hf(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(again[1], under["resid_post.0"])


def test_under_nests_and_each_records_what_the_model_went_on_with():
    model = gpt2()
    vector = torch.ones(32)
    twice = [pc.add("resid_pre.1", vector), pc.scale("z.2", 0.5)]
    expected = model.run(IDS, do=twice, record=["resid_mid.1", "resid_post.*"])
    with (
        model.under(do=twice[0], record=["resid_mid.1"]) as outer,
        model.under(do=twice[1], record="resid_post.*") as inner,
    ):
        model.hf(IDS)
    assert torch.equal(inner.logits, expected.logits)
    assert torch.equal(inner["resid_post.*"], expected["resid_post.*"])
    assert torch.equal(outer["resid_mid.1"], expected["resid_mid.1"])
    with model.under(record="resid_mid.1") as outer, model.under(do=twice):
        model.hf(IDS)
    assert torch.equal(outer["resid_mid.1"], expected["resid_mid.1"])


def test_threads_do_not_see_each_others_interventions():
    model = gpt2()
    model.anatomy
    factors = (0.0, 0.5, 2.0, None)
    alone = [model.run(IDS, do=[] if f is None else pc.scale("pattern.1", f)).logits for f in factors]
    wrong, gate = [], threading.Barrier(len(factors))

    def work(index: int) -> None:
        torch.set_num_threads(1)
        gate.wait()
        for _ in range(8):
            with torch.no_grad():
                do = factors[index]
                logits = model.hf(IDS).logits if do is None else model.run(IDS, do=pc.scale("pattern.1", do)).logits
            if not torch.allclose(logits, alone[index], atol=1e-5):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(factors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_bare_forward_of_another_thread_is_untouched_while_a_block_is_open():
    model = gpt2()
    bare = model.hf(IDS).logits
    got = []
    with model.under(do=pc.ablate("resid_post.1")) as run:
        thread = threading.Thread(target=lambda: got.append(model.hf(IDS).logits))
        thread.start()
        thread.join()
        model.hf(IDS)
    assert torch.equal(got[0], bare)
    assert not torch.equal(run.logits, bare)


def test_two_models_at_once():
    one, two = gpt2(), wrap(tiny.build("gpt2", seed=1))
    with one.under(do=pc.ablate("z.1"), record="z.1") as a, two.under(record="z.1") as b:
        one.hf(IDS)
        two.hf(IDS)
    assert not a["z.1"].any()
    assert torch.equal(b["z.1"], two.run(IDS, record="z.1")["z.1"])


def test_a_compiled_model_is_refused():
    whole, part = gpt2(), gpt2()
    compiled = wrap(torch.compile(whole.hf, backend="eager"))
    with pytest.raises(RuntimeError, match="compiled"):
        compiled.run(IDS, record="module:_orig_mod.transformer.h.0")
    part.anatomy
    part.hf.transformer.h[1].compile(backend="eager")
    with pytest.raises(RuntimeError, match="compiled"):
        part.run(IDS, record="z.1")


def test_a_module_that_is_never_called_is_an_error():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = wrap(Two())
    with pytest.raises(NeverFired, match="unused"):
        model.run(torch.randn(2, 4), record="module:unused")
    with pytest.raises(NeverFired, match="unused"):
        model.run(torch.randn(2, 4), do=pc.ablate("module:unused"))
    with pytest.raises(NeverFired, match="without a forward pass"), model.under(record="module:used"):
        pass


def test_a_module_called_twice_has_no_one_recording():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(pc.SiteError, match="several times"):
        wrap(Twice()).run(torch.randn(2, 4), record="module:layer")


# ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["gpt2", "gptj", "mixtral", "olmo2", "t5"])
def test_a_pass_ends_after_its_last_recorded_site(name):
    model = wrap(tiny.build(name))
    given = inputs_of(name, model.hf)
    every = model.run(given, record=model.sites())
    for kind in ("v", "pattern", "mlp_gate", "mlp_pre", "router", "resid_mid", "attn_out"):
        sites = [s for s in model.sites() if s.kind == kind and s.layer in (0, 1)]
        if not sites:
            continue
        sites.append(next(s for s in model.sites() if s.kind == "z" and s.layer == 0))
        run = model.run(given, record=sites, stop=True)
        assert run.logits is None
        for site in sites:
            torch.testing.assert_close(run[site], every[site], rtol=1e-5, atol=1e-5)
    calls = []
    last = model.hf.get_submodule(model.anatomy.layers[""][-1].path)
    last.register_forward_hook(lambda *_: calls.append(1))
    model.run(given, record="resid_post.0", stop=True)
    assert calls == []


def test_stopping_before_a_recorded_site_is_an_error():
    with pytest.raises(NeverFired, match=r"stopped at resid_post\.0"):
        gpt2().run(IDS, record="resid_post.2", stop="resid_post.0")


# ── training and gradients under ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_training_step_with_checkpointing_and_an_intervention(reentrant):
    def step(checkpointing: bool) -> tuple:
        model = wrap(tiny.build("llama"))
        model.anatomy
        model.hf.train()
        if checkpointing:
            model.hf.gradient_checkpointing_enable({"use_reentrant": reentrant})
        before = state(model.hf)[0]
        with model.under(do=[pc.scale("z.1.2", 3.0), pc.scale("pattern.0", 0.5)], record=["resid_mid.1", "v.1"]) as run:
            model.hf(IDS, labels=IDS, use_cache=False).loss.backward()
        assert state(model.hf)[0] == before
        gradients = {name: p.grad for name, p in model.hf.named_parameters()}
        return run["resid_mid.1"], run["v.1"], gradients

    mid, v, gradients = step(True)
    plain_mid, plain_v, plain = step(False)
    torch.testing.assert_close(mid, plain_mid)
    torch.testing.assert_close(v, plain_v)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-5)


def test_backward_through_recording_equals_plain_autograd():
    model = gpt2()
    model.hf(IDS, labels=IDS).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.hf.named_parameters()}
    model.hf.zero_grad()
    with model.under(record=["resid_post.*", "z.*", "k.*"]):
        model.hf(IDS, labels=IDS).loss.backward()
    for name, p in model.hf.named_parameters():
        assert torch.equal(p.grad, plain[name])


def test_a_loss_may_use_what_was_recorded():
    model = gpt2()
    with model.under(record="z.1.2") as run:
        model.hf(IDS)
    run["z.1.2"].square().sum().backward()
    assert model.hf.transformer.h[1].attn.c_attn.weight.grad.abs().sum() > 0
    assert model.hf.transformer.h[2].attn.c_attn.weight.grad is None


GRADIENT_SITES = [
    "embed", "resid_pre.1", "ln1_scale.1", "attn_in.1", "q.1", "k.1", "v.1", "scores.1", "pattern.1", "z.1", "z.1.2",
    "head_out.1.3", "attn_out.1", "resid_mid.1", "mlp_in.1", "mlp_pre.1", "mlp_post.1", "mlp_out.1", "resid_post.1",
    "final_norm", "final_norm_scale", "logits",
]  # fmt: skip


# Where norms and softmax are computed in single precision whatever the model's, steps must be larger.
@pytest.mark.parametrize(
    ("name", "step", "rounding"),
    [("gpt2", 1e-6, 2e-5), ("falcon", 1e-6, 2e-5), ("llama", 2e-3, 1e-2), ("granite", 2e-3, 1e-2)],
)
def test_gradients_equal_finite_differences(name, step, rounding):
    model = wrap(tiny.build(name, dtype=torch.float64))
    have = {(s.kind) for s in model.sites()}
    sites = [s for s in GRADIENT_SITES if s.split(".")[0] in have]
    weight = torch.randn(2, 6, 99, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def metric(logits):
        return (logits * weight).sum((1, 2))

    background = [pc.scale("resid_pre.0", 1.3)]
    run = model.run(IDS, record=sites, do=background, grad=metric)
    assert all(p.grad is None for p in model.hf.parameters())
    for index, site in enumerate(sites):
        x, gradient = run[site], run.grad[site]
        assert gradient.shape == x.shape and gradient.dtype == torch.float64
        generator = torch.Generator().manual_seed(index)
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        direction = direction.where(torch.isfinite(x) & (x > -1e30), 0.0)
        if site.startswith("pattern"):
            direction = direction.where(x > 0, 0.0)
        plus, minus = (
            metric(model.run(IDS, do=[*background, pc.edit(site, lambda x, by=s * direction: x + by)]).logits).sum()
            for s in (step, -step)
        )
        found, expected = float((gradient * direction).sum()), float((plus - minus) / (2 * step))
        assert found == pytest.approx(expected, rel=rounding, abs=rounding * float((gradient * direction).norm())), site


def test_gradients_of_a_frozen_model():
    model = gpt2()
    expected = model.run(IDS, record="z.*", grad=lambda logits: logits[:, -1, 3]).grad["z.1"]
    model.hf.requires_grad_(False)
    run = model.run(IDS, record="z.*", grad=lambda logits: logits[:, -1, 3])
    torch.testing.assert_close(run.grad["z.1"], expected)
    assert not run.logits.requires_grad and not run["z.1"].requires_grad
    with pytest.raises(ValueError, match="record="):
        model.run(IDS, grad=lambda logits: logits.sum())
