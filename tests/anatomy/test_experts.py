"""The weights of a mixture's experts: by expert and by slot, in every kernel, recorded, set, differentiated, absent."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import patchclamp as pc
import tiny
from patchclamp.anatomy.experts import by_expert, by_slot, unread
from patchclamp.model import Model, wrap
from patchclamp.sites import Site

MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "deepseek_v2", "gpt_oss")
IDS = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request):
    return wrap(tiny.build(request.param), name=request.param)


@pytest.fixture(scope="module")
def mixtral():
    return wrap(tiny.build("mixtral"), name="mixtral")


def each(model: Model, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """[expert, token, d]: what the model's own module returns where each expert is chosen alone, with weight 1."""
    site = Site("expert_weight", layer)
    module = model.hf.get_submodule(model.anatomy.taps[site].path)
    ones = torch.ones(len(hidden), 1, dtype=hidden.dtype)
    count = model.anatomy.inventory.units[site]
    with torch.no_grad():
        return torch.stack([module(hidden, torch.full((len(hidden), 1), e), ones) for e in range(count)])


# ── by expert and by slot ─────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 5), st.integers(1, 4), st.integers(4, 7), st.integers(0, 999))
def test_slots_amount_to_what_is_asked_for_and_the_first_are_the_routers(tokens, slots, experts, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(experts, (tokens, slots), generator=generator)  # one expert may be in two slots
    dense = torch.randn(tokens, experts, generator=generator)
    dense *= torch.rand(tokens, experts, generator=generator) < 0.5
    further, weight = by_slot(index, dense)
    assert torch.equal(by_expert(further, weight, experts), dense)
    assert torch.equal(further[:, :slots], index) and further.shape[1] <= slots + experts
    alone = torch.stack([torch.randperm(experts, generator=generator)[:slots] for _ in range(tokens)])
    given_ = torch.randn(tokens, slots, generator=generator)
    for have, wanted in zip(by_slot(alone, by_expert(alone, given_, experts)), (alone, given_), strict=True):
        assert torch.equal(have, wanted)  # nothing changed: the very bits


# ── recorded ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_the_weight_of_the_experts_chosen_and_no_bit_of_the_output_changes(mixture):
    bare = mixture.run(IDS).logits
    sites = mixture.sites(["expert_weight.*", "expert_index.*"])
    run = mixture.run(IDS, record=sites)
    assert torch.equal(run.logits, bare)
    for site in mixture.sites("expert_weight.*"):
        module = mixture.hf.get_submodule(mixture.anatomy.taps[site].path)
        with torch.no_grad():
            calls = []
            handle = module.register_forward_pre_hook(lambda m, args, calls=calls: calls.append(args))
            mixture.hf(IDS)
            handle.remove()
        _, index, weight = calls[0]
        dense = torch.zeros(14, module.down_proj.shape[0]).scatter(1, index, weight.float()).view(2, 7, -1)
        assert torch.equal(run[site].float(), dense)
        assert torch.equal(run[f"expert_index.{site.layer}"], index.view(2, 7, -1))
        own = mixture.run(IDS, do=[pc.patch(s, run) for s in sites]).logits
        assert torch.equal(own, bare)


@pytest.mark.parametrize("kernel", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_whatever_the_kernel_any_weights_are_those_of_the_sum(name, kernel):
    model = wrap(tiny.build(name))
    model.hf.set_experts_implementation(kernel)
    bare = model.run(IDS, record="expert_weight.1")
    assert torch.equal(bare.logits, model.hf(IDS).logits)
    wanted = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(1))  # of every expert, chosen or not
    path = model.anatomy.taps[Site("expert_weight", 1)].path
    run = model.run(
        IDS, do=pc.patch("expert_weight.1", wanted), record=["expert_weight.1", f"module:{path}", "mlp_in.1"]
    )
    assert torch.equal(run["expert_weight.1"], wanted)
    outputs = each(model, 1, run["mlp_in.1"].flatten(0, 1))
    made = torch.einsum("te,etd->td", wanted.flatten(0, 1), outputs)
    torch.testing.assert_close(run[f"module:{path}"].reshape(made.shape), made, rtol=1e-4, atol=1e-5)


# ── set ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_expert_that_is_off_takes_its_own_term_away_and_nothing_else(mixture):
    layer = mixture.sites("router.*")[0].layer
    at, out = f"expert_weight.{layer}", f"mlp_out.{layer}"
    clean = mixture.run(IDS, record=[at, out, f"mlp_in.{layer}"])
    expert = int(clean[at].sum((0, 1)).argmax())
    off = mixture.run(IDS, do=pc.ablate(f"{at}.{expert}", pos=3), record=[f"{at}.{expert}", out])
    assert not off[f"{at}.{expert}"][:, 3].any()
    term = clean[at][:, 3, expert, None] * each(mixture, layer, clean[f"mlp_in.{layer}"][:, 3])[expert]
    torch.testing.assert_close(clean[out][:, 3] - off[out][:, 3], term, rtol=1e-3, atol=1e-5)
    rest = [pos for pos in range(7) if pos != 3]
    assert term.any() and torch.equal(clean[out][:, rest], off[out][:, rest])


def test_weights_of_another_run_bring_its_experts_and_neurons_keep_the_routers_slots(mixtral):
    other = mixtral.run(IDS.flip(0), record=["expert_weight.1", "mlp_out.1"])
    same = [pc.patch("mlp_in.1", mixtral.run(IDS.flip(0), record="mlp_in.1"))]
    record = ["expert_weight.1", "expert_index.1", "expert_post.1", "mlp_out.1"]
    clean = mixtral.run(IDS, record=record)
    run = mixtral.run(IDS, do=[*same, pc.patch("router.1", mixtral.run(IDS, record="router.1"))], record=record)
    assert torch.equal(run["expert_index.1"], clean["expert_index.1"])
    assert not torch.equal(other["expert_weight.1"] > 0, run["expert_weight.1"] > 0)
    back = [*same, pc.patch("router.1", mixtral.run(IDS, record="router.1")), pc.patch("expert_weight.1", other)]
    run = mixtral.run(IDS, do=back, record=record)
    torch.testing.assert_close(run["mlp_out.1"], other["mlp_out.1"], rtol=1e-4, atol=1e-6)
    assert run["expert_post.1"].shape == clean["expert_post.1"].shape
    halved = mixtral.run(IDS, do=[*back, pc.scale("expert_post.1.0", 0.0)], record=["mlp_out.1"])
    assert not torch.equal(halved["mlp_out.1"], run["mlp_out.1"])


def test_a_chosen_index_brings_another_expert_with_the_weight_of_its_slot(mixture):
    layer = mixture.sites("router.*")[0].layer
    index, weight = f"expert_index.{layer}", f"expert_weight.{layer}"
    clean = mixture.run(IDS, record=[index, weight, f"mlp_in.{layer}"])
    count = clean[weight].shape[-1]
    path = mixture.anatomy.taps[Site("expert_weight", layer)].path
    run = mixture.run(IDS, do=pc.edit(index, lambda i: (i + 1) % count), record=[weight, f"module:{path}"])
    assert torch.equal(run[weight], clean[weight].roll(1, -1))
    made = torch.einsum(
        "te,etd->td", run[weight].flatten(0, 1), each(mixture, layer, clean[f"mlp_in.{layer}"].flatten(0, 1))
    )
    torch.testing.assert_close(run[f"module:{path}"].reshape(made.shape), made, rtol=1e-4, atol=1e-5)


def test_generation_and_left_padding_mean_what_a_run_means(mixtral):
    do = [pc.ablate("expert_weight.1.2"), pc.add("expert_weight.0.3", torch.tensor(0.3), when="generated")]
    made = mixtral.generate(IDS, do=do, record="expert_weight.*", max_new_tokens=4)
    assert made["expert_weight.0"].shape == (2, 10, 4) and not made["expert_weight.1"][..., 2].any()
    clean = mixtral.generate(IDS, record="expert_weight.0", max_new_tokens=4)
    assert torch.equal(made["expert_weight.0"][:, :7], clean["expert_weight.0"][:, :7])
    assert (made["expert_weight.0"][:, 7:].sum(-1) > 1.29).all()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(10) >= 3).long().expand(2, -1)
    again = mixtral.generate(padded, attention_mask=mask, do=do, max_new_tokens=4).tokens
    assert torch.equal(again, made.tokens)


def test_a_pass_may_end_before_the_experts_are_run(mixtral):
    module = mixtral.hf.get_submodule(mixtral.anatomy.taps[Site("expert_weight", 0)].path)
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    run = mixtral.run(IDS, record="expert_weight.0", stop=True)
    handle.remove()
    assert calls == [] and run.logits is None and run["expert_weight.0"].sum(-1).allclose(torch.ones(2, 7))


# ── differentiated ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_the_gradient_is_that_of_the_sum_also_by_experts_that_were_not_chosen(name):
    hf = tiny.build(name, dtype=torch.float64)
    hf.set_experts_implementation("eager")  # the others have no double precision
    model = wrap(hf)

    def score(logits):
        return logits[:, -1, 5]

    run = model.run(IDS, record="expert_weight.1", grad=score)
    torch.testing.assert_close(run.logits, model.run(IDS).logits)
    assert (run["expert_weight.1"] == 0).any()
    for pos in (2, 6):
        for expert in range(4):
            step = 1e-3  # routers and attention compute their softmax in single precision
            up, down = (
                score(model.run(IDS, do=pc.add(f"expert_weight.1.{expert}", torch.tensor(by), pos=pos)).logits)
                for by in (step, -step)
            )
            slope = (up - down) / (2 * step)
            torch.testing.assert_close(
                run.grad["expert_weight.1"][:, pos, expert].double(), slope, rtol=5e-3, atol=5e-4
            )
    assert run.grad["expert_weight.1"][:, -1].all()


def test_a_weight_that_is_learnt_from_nothing_has_a_gradient(mixtral):
    learnt = torch.zeros(4, requires_grad=True)
    with mixtral.under(do=pc.edit("expert_weight.1", lambda weight: weight + learnt)):
        loss = mixtral.hf(IDS[:1, :2]).logits.square().sum()
    loss.backward()
    mixtral.hf.zero_grad()
    assert learnt.grad is not None and learnt.grad.all()


# ── absent ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def odd(name: str) -> Model:
    """Mixtures whose experts are not called with stacked weights, an index and a weight for each slot."""
    common = {**tiny._LLAMA, "num_hidden_layers": 2, "moe_topk": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    if name == "longcat_flash":
        common |= {
            "num_key_value_heads": 4,
            "head_dim": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "n_routed_experts": 4,
        }
        common |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "expert_ffn_hidden_size": 24}
        common |= {"ffn_hidden_size": 56, "zero_expert_num": 2, "num_layers": 2}
    config = transformers.AutoConfig.for_model(name, **common)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return wrap(transformers.AutoModelForCausalLM.from_config(config).eval(), name=name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("longcat_flash", "LongcatFlashExperts keeps its experts in a form of its own"),  # some experts are identities
        ("jetmoe", "JetMoeParallelExperts does not hold its experts as stacked weights"),
    ],
)
def test_what_is_no_such_mixture_says_why(name, why):
    model = odd(name)
    absent = dict(model.certificate.absent)
    for kind in ("expert_weight", "expert_index", "expert_post"):
        assert why in absent[kind]
    with pytest.raises(pc.SiteError, match=why):
        model.sites("expert_weight.*")


def test_a_sum_that_is_not_of_the_weights_is_noticed(mixtral):
    module = mixtral.hf.get_submodule(mixtral.anatomy.taps[Site("expert_weight", 0)].path)
    hidden, index = torch.randn(5, 32), torch.randint(4, (5, 2))
    weight = torch.rand(5, 2)
    with torch.no_grad():
        out = module(hidden, index, weight)
        assert unread(module, (hidden, index, weight), out) is None
        assert "not the sum" in unread(module, (hidden, index, weight), 1.1 * out)
        assert "form of its own (IndexError" in unread(module, (hidden, index + 4, weight), out)
        assert "none is chosen by index" in unread(module, (hidden,), out)


# ── elsewhere ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_over_experts_is_a_run_for_each(mixtral):
    task = pc.Task.from_tokens(clean=IDS, corrupt=IDS.roll(1, 0), answers=[5, 6], wrong=[15, 16])
    effects = pc.patching.sweep(mixtral, task, "expert_weight.1.*", positions="all", normalise=False)
    source = mixtral.run(task.clean, record="expert_weight.1")
    for expert in range(4):
        logits = mixtral.run(task.corrupt, do=pc.patch(f"expert_weight.1.{expert}", source)).logits
        wanted = pc.metrics.logit_difference(task.at_answer(logits), task).mean()
        assert float(effects.sel(expert=expert).squeeze()) == pytest.approx(float(wanted), abs=1e-4)
