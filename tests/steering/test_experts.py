"""Switches of experts do to every mixture what a plain hook on its experts does; planted experts rank first."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import patchclamp as pc
import tiny
from patchclamp.anatomy.experts import routing
from patchclamp.interventions import InterventionError
from patchclamp.sites import Site
from patchclamp.steering import DirectionError, experts
from patchclamp.steering.experts import Relevance

MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "deepseek_v2", "gpt_oss")


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request):
    return pc.wrap(tiny.build(request.param), name=request.param)


@pytest.fixture(scope="module")
def mixtral():
    return pc.wrap(tiny.build("mixtral"), name="mixtral")


def tokens(rows: int = 3, length: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(seed))


@contextmanager
def hooked(model: pc.Model, layer: int, change=lambda index, weight: weight) -> Iterator[dict]:
    """Another weight for each chosen expert, by PyTorch alone; what the module was called with."""
    module = model.hf.get_submodule(model.anatomy.taps[Site("expert_post", layer)].path)
    seen: dict = {}

    def hook(_module, args, kwargs):
        _, index, weight = routing(args, kwargs)
        new = change(index, weight)
        seen.update(index=index, weight=weight, new=new)
        return tuple(new if t is weight else t for t in args), {k: new if t is weight else t for k, t in kwargs.items()}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def times(factor: float, expert: int):
    def change(index, weight):
        new = torch.where(index == expert, factor * weight, weight)
        left = new.sum(-1, keepdim=True)
        return torch.where(left > 0, new * weight.sum(-1, keepdim=True) / left, 0.0)

    return change


def commonest(model: pc.Model, ids: torch.Tensor) -> tuple[int, int]:
    layer = model.sites("router.*")[0].layer
    assert layer is not None
    return layer, int(model.run(ids, record=f"expert_index.{layer}")[f"expert_index.{layer}"].flatten().mode().values)


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_weighing_is_another_weight_and_the_others_keep_the_sum(mixture, factor):
    ids = tokens()
    layer, expert = commonest(mixture, ids)
    with hooked(mixture, layer, times(factor, expert)) as seen:
        wanted = mixture.run(ids).logits
    left = seen["new"].sum(-1) > 0
    torch.testing.assert_close(seen["new"].sum(-1)[left], seen["weight"].sum(-1)[left])
    have = mixture.run(ids, do=experts.weigh(mixture, {f"router.{layer}.{expert}": factor})).logits
    torch.testing.assert_close(have, wanted, atol=1e-5, rtol=1e-4)
    assert (wanted - mixture.run(ids).logits).abs().max() > 1e-2


def test_it_is_the_same_in_generation_behind_padding_and_afterwards_all_is_as_it_was(mixtral):
    ids, do = tokens(2, 6), experts.switch(mixtral, off=["router.0.1", "router.2.0"], on=["router.1.3"])
    clean = mixtral.run(ids).logits
    steered = mixtral.generate(ids, do=do, max_new_tokens=5).tokens
    for step in range(6, 11):
        assert torch.equal(mixtral.run(steered[:, :step], do=do).logits[:, -1].argmax(-1), steered[:, step])
    assert not torch.equal(steered, mixtral.generate(ids, max_new_tokens=5).tokens)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(9) >= 3).long().expand(2, -1)
    assert torch.equal(mixtral.generate(padded, attention_mask=mask, do=do, max_new_tokens=5).tokens, steered)
    assert torch.equal(mixtral.run(ids).logits, clean)


def test_forced_experts_are_chosen_and_only_where_they_are_forced(mixture):
    layer = mixture.sites("router.*")[0].layer
    at = f"expert_index.{layer}"
    clean = mixture.run(tokens(), record=at)[at]
    for pos, where in ((None, slice(None)), (2, slice(2, 3))):
        do = experts.force(mixture, [f"router.{layer}.1", f"router.{layer}.3"], pos=pos)
        index = mixture.run(tokens(), do=do, record=at)[at]
        assert (index[:, where].sort(-1).values == torch.tensor([1, 3])).all()
        if pos is not None:
            rest = [place for place in range(7) if place != pos]
            assert torch.equal(index[:, rest], clean[:, rest])


def test_a_softmax_router_gives_a_forced_expert_e_to_the_margin_times_the_next(mixtral):
    do = experts.force(mixtral, ["router.1.2"], margin=1.5)
    weight = mixtral.run(tokens(), do=do, record="expert_weight.1")["expert_weight.1"]
    forced, next_ = weight[..., 2], weight[..., [0, 1, 3]].amax(-1)
    torch.testing.assert_close(forced / next_, torch.full((3, 7), 1.5).exp())


def test_where_all_that_were_chosen_are_off_nothing_is_left(mixtral):
    every = [f"router.1.{unit}" for unit in range(4)]
    assert not mixtral.run(tokens(), do=experts.switch(mixtral, off=every), record="mlp_out.1")["mlp_out.1"].any()


# ── relevance ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_activity_is_counted_from_what_the_experts_were_called_with(mixture):
    ids = tokens()
    found = experts.activity(mixture, ids)
    router = mixture.sites("router.*")[-1]
    with hooked(mixture, router.layer) as seen:
        mixture.run(ids)
    count = len({s for s in found.experts if s.layer == router.layer})
    for values, kept in ((found.weight, seen["weight"]), (found.chosen, torch.ones_like(seen["weight"]))):
        wanted = torch.zeros(21, count).scatter(1, seen["index"], kept.float()).view(3, 7, count).mean(1)
        torch.testing.assert_close(values[:, -count:], wanted)


def test_padding_does_not_count_and_sides_swapped_change_the_sign(mixtral):
    ids = tokens(2, 5)
    plain = experts.activity(mixtral, ids[:1, :3])
    model = mixtral
    texts = [ids[0, :3].tolist(), ids[1].tolist()]
    torch.testing.assert_close(experts.activity(model, texts).weight[:1], plain.weight)
    one, other = (experts.relevance(model, *pair) for pair in ((ids, tokens(4)), (tokens(4), ids)))
    assert torch.equal(one.score, -other.score)
    torch.testing.assert_close(one.usage.sum(), torch.tensor(3 * 2.0))  # three layers, two slots in each


def test_an_expert_that_a_class_was_sent_to_ranks_first():
    model = pc.wrap(tiny.build("olmoe"))
    mark = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    model.hf.model.embed_tokens.weight.data[3:20] += 3 * mark
    model.hf.model.layers[0].mlp.gate.weight.data[2] = 4 * mark
    positive = torch.randint(3, 20, (8, 6), generator=torch.Generator().manual_seed(1))
    negative = torch.randint(20, 99, (8, 6), generator=torch.Generator().manual_seed(2))
    for pos in (None, -1):
        found = experts.relevance(model, positive, negative, pos=pos)
        assert list(map(str, found.most(1))) == ["router.0.2"]


def test_controls_are_other_experts_and_matched_ones_are_used_as_often():
    names = tuple(Site("router", 0, unit) for unit in range(20))
    usage = torch.linspace(0, 1, 20)
    score = torch.zeros(20)
    score[[4, 15]] = torch.tensor([1.0, 2.0])
    found = Relevance(names, score, usage)
    assert found.most(2) == [names[15], names[4]]
    for seed in range(20):
        drawn, matched = found.drawn(2, seed=seed), found.matched(2, seed=seed)
        assert len(set(drawn)) == 2 and not {names[4], names[15]} & {*drawn, *matched}
        assert abs(matched[0].unit - 15) <= 2 and abs(matched[1].unit - 4) <= 2
    assert len({tuple(found.drawn(2, seed=seed)) for seed in range(20)}) > 5
    assert found.matched(2, seed=3) == found.matched(2, seed=3)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_does_not_fit_is_refused(mixtral):
    for call, message in (
        (lambda: experts.switch(mixtral, off=["router.1"]), r"router.1 names no expert"),
        (lambda: experts.switch(mixtral, off=["resid_post.1"]), "names no expert"),
        (lambda: experts.switch(mixtral, off=["router.1.0"], on=["router.1.0"]), "off and on"),
        (lambda: experts.force(mixtral, [f"router.1.{unit}" for unit in range(3)]), "3 experts are forced.*2 slots"),
        (lambda: experts.force(mixtral, ["router.1.0"], margin=0.0), "margin"),
        (lambda: experts.weigh(mixtral, {"router.1.0": -1.0}), "0 or more"),
        (lambda: experts.switch(mixtral), "no expert is named"),
        (lambda: experts.relevance(mixtral, tokens(), tokens()).most(7), "k=7 of 12"),
        (lambda: experts.activity(mixtral, tokens(), pos=torch.zeros(3, 1)), "by prompt"),
    ):
        with pytest.raises(DirectionError, match=message):
            call()


def test_weights_come_after_whatever_is_done_to_the_router(mixtral):
    do = experts.switch(mixtral, off=["router.1.0"])
    other = pc.edit("router.1", lambda logits, **_: logits.roll(1, -1))
    one, two = (mixtral.run(tokens(), do=both, record="expert_weight.1") for both in ([*do, other], [other, *do]))
    assert torch.equal(one.logits, two.logits) and not one["expert_weight.1"][..., 0].any()


def test_a_model_whose_experts_have_no_weights_says_why():
    model = pc.load("organism:tales")
    for call in (lambda: experts.weigh(model, {"router.1.0": 0.5}), lambda: experts.activity(model, ["the day"])):
        with pytest.raises(pc.SiteError, match="the MLP is dense"):
            call()


def test_a_router_that_goes_by_more_than_its_logits_is_noticed():
    config = tiny.CONFIGS["deepseek_v2"][1] | {"num_experts_per_tok": 1, "n_group": 2, "head_dim": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = DeepseekV3ForCausalLM(DeepseekV3Config(**config)).eval()
    model = pc.wrap(hf)
    do = experts.force(model, ["router.1.0"], margin=1.0)
    assert (model.run(tokens(), do=do, record="expert_index.1")["expert_index.1"] == 0).all()
    hf.model.layers[1].mlp.gate.e_score_correction_bias[2:] = 5.0
    with pytest.raises(InterventionError, match="larger margin"):
        model.run(tokens(), do=do)
