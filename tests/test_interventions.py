"""An intervention means the same under any padding, in a full pass and token by token; or else it is an error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patchclamp as pc
import tiny
from patchclamp import interventions
from patchclamp.interventions import InterventionError
from patchclamp.model import Model, wrap
from patchclamp.positions import PositionError
from patchclamp.recording import Recording

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15]]
CAUSAL = [name for name in tiny.CONFIGS if name not in (*tiny.NOT_CAUSAL, "mamba")]


def build(name: str, implementation: str | None = None, **changes) -> Model:
    hf = tiny.build(name, **changes)
    if hf.can_generate():
        hf.generation_config.eos_token_id = None
    if implementation is not None:
        try:
            hf.set_attn_implementation(implementation)
        except ValueError:
            pytest.skip(f"{name} has no {implementation} attention")
    return wrap(hf)


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return build("gpt2")


@pytest.fixture(scope="module")
def llama() -> Model:
    return build("llama")


def real(tensor: torch.Tensor, row: int, left: int, length: int, axis: int) -> torch.Tensor:
    return tensor[row].movedim(axis - 1, 0)[left : left + length]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [*CAUSAL, "mamba"])
def test_what_generation_records_is_what_a_full_pass_records(name, implementation):
    model = build(name, implementation)
    sites = model.sites()
    generation = model.generate(PROMPTS, record=sites, max_new_tokens=5)
    for row, prompt in enumerate(PROMPTS):
        left = len(PROMPTS[0]) - len(prompt)
        ids = generation.tokens[row, left:-1]
        full = model.run(ids[None], record=sites)
        for site in sites:
            got = real(generation.recording[site], row, left, len(ids), site.pos_axis)
            expected = real(full[site], 0, 0, len(ids), site.pos_axis)
            if site.kind in ("scores", "pattern"):
                got, expected = (x[..., -len(ids) :].clamp_min(-1e4) for x in (got, expected))
            if site.kind == "scores":  # ALiBi may count from the last key: scores are what softmax makes of them
                got, expected = (x - x.max(-1, keepdim=True).values for x in (got, expected))
            torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4, msg=lambda m, s=site: f"{s}: {m}")


def effects(model: Model) -> dict[str, list]:
    generator = torch.Generator().manual_seed(0)
    d = model.d_model
    vector = torch.randn(d, generator=generator)
    head = model.run(PROMPTS[1], record=["k.1", "v.1"])
    small = torch.randn(head["k.1"].shape[-2:], generator=generator)
    return {
        "everywhere": [pc.add("resid_post.1", vector)],
        "third": [pc.add("resid_pre.1", vector, pos=3)],
        "last of the prompt": [pc.add("resid_post.0", vector, pos=-1)],
        "a generated position": [pc.add("resid_post.0", vector, pos=[5, 8])],
        "prompt": [pc.scale("attn_out.1", 0.3, when="prompt")],
        "generated": [pc.add("mlp_out.1", vector, when="generated")],
        "keys": [pc.add("k.1", small, pos=2), pc.scale("k.0", 0.5)],
        "values": [pc.add("v.1.0", torch.ones(head["v.1"].shape[-1])), pc.ablate("v.0", pos=0)],
        "patterns": [pc.scale("pattern.1.2", 0.5), pc.ablate("pattern.0.1", pos=4)],
        "scores": [pc.scale("scores.0.1", 0.5, pos=-1)],
        "heads": [pc.ablate("z.1.3"), pc.project_out("z.0", small[0])],
        "slice": [pc.clamp("mlp_post.2", 0.2, pos=slice(1, 3))] if "mlp_post.2" in map(str, model.sites()) else [],
    }


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2", "gpt_oss", "bloom", "mixtral", "falcon"])
def test_an_intervention_in_generation_is_that_of_a_full_pass(name, implementation):
    model = build(name, implementation)
    record = ["resid_post.*", "k.*", "z.2", "logits"]
    for what, do in effects(model).items():
        if not do:
            continue
        generation = model.generate(PROMPTS, do=do, record=record, max_new_tokens=6)
        for row, prompt in enumerate(PROMPTS):
            left = len(PROMPTS[0]) - len(prompt)
            ids = generation.tokens[row, left:-1]
            run = model.run(ids[None], do=[as_full(item, len(prompt), len(ids)) for item in do], record=record)
            for site in run.recording:
                got = real(generation.recording[site], row, left, len(ids), 1)
                torch.testing.assert_close(
                    got, run[site][0], rtol=1e-3, atol=1e-3, msg=lambda m, s=site, w=what: f"{w}, {s}: {m}"
                )
            assert torch.equal(
                run.logits[0, len(prompt) - 1 :].argmax(-1), generation.tokens[row, left + len(prompt) :]
            )


def as_full(item: interventions.Intervention, prompt: int, total: int) -> interventions.Intervention:
    """The positions of a generation, as those of one pass over prompt and continuation."""
    from dataclasses import replace

    if item.when != "all":
        return replace(item, when="all", pos=slice(0, prompt) if item.when == "prompt" else slice(prompt, total))
    return replace(item, pos=prompt - 1) if item.pos == -1 else item


def test_patching_from_a_run_in_generation(llama):
    other = [[21, 22, 23, 24, 25, 26, 27], [31, 32, 33, 34]]
    source = llama.run(other, record=["resid_post.1", "k.0", "pattern.1"])
    for do in (
        [pc.patch("resid_post.1", source, when="prompt")],
        [pc.patch("k.0", source, when="prompt")],
        [pc.patch("pattern.1.2", source, pos=-1)],
        [pc.patch("resid_post.1", source["resid_post.1"], when="prompt")],
        [pc.patch("resid_post.1", source, pos=llama.tokens(PROMPTS).mask)],
    ):
        generation = llama.generate(PROMPTS, do=do, max_new_tokens=1, record="resid_post.2")
        run = llama.run(PROMPTS, do=do, record="resid_post.2")
        for row, prompt in enumerate(PROMPTS):
            got = generation["resid_post.2"][row, 7 - len(prompt) :]
            torch.testing.assert_close(got, run["resid_post.2"][row, : len(prompt)], rtol=1e-4, atol=1e-4)


# ── padding ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def batches(draw):
    lengths = draw(st.lists(st.integers(3, 8), min_size=1, max_size=4))
    prompts = [draw(st.lists(st.integers(3, 90), min_size=n, max_size=n)) for n in lengths]
    side = draw(st.sampled_from(["left", "right"]))
    extra = draw(st.integers(0, 2))
    return prompts, side, extra, draw(st.integers(-3, 2))


def padded(prompts: list[list[int]], side: str, extra: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    width = max(map(len, prompts)) + extra
    ids, mask = torch.full((len(prompts), width), 7), torch.zeros(len(prompts), width, dtype=torch.long)
    lefts = [width - len(p) if side == "left" else 0 for p in prompts]
    for row, (prompt, left) in enumerate(zip(prompts, lefts, strict=True)):
        ids[row, left : left + len(prompt)] = torch.tensor(prompt)
        mask[row, left : left + len(prompt)] = 1
    return ids, mask, lefts


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom", "opt", "gemma2", "bert", "roberta", "mpt"])
def test_padding_changes_nothing(name):
    model = build(name)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))

    @settings(max_examples=6)
    @given(batches())
    def check(batch):
        prompts, side, extra, pos = batch
        ids, mask, lefts = padded(prompts, side, extra)
        do = [pc.add("resid_post.0", vector, pos=pos), pc.scale("z.1.1", 0.3)]
        record = [
            "resid_post.*",
            "k.1",
            "pattern.1",
            pc.keep("mlp_post.1", reduce="mean"),
            pc.keep("z.2", positions=pos),
        ]
        run = model.run(ids, attention_mask=mask, do=do, record=record)
        given_as_dictionary = model.run({"input_ids": ids, "attention_mask": mask}, do=do, record=record)
        for row, (prompt, left) in enumerate(zip(prompts, lefts, strict=True)):
            alone = model.run([prompt], do=do, record=record)
            inside = slice(left, left + len(prompt))
            for got in (run, given_as_dictionary):
                pairs = [(got.logits[row, inside], alone.logits[0])]
                pairs += [(got[s][row, inside], alone[s][0]) for s in ("resid_post.0", "resid_post.2", "k.1")]
                pairs += [(got["pattern.1"][row, :, inside, inside], alone["pattern.1"][0])]
                pairs += [(got[s][row], alone[s][0]) for s in ("mlp_post.1", "z.2")]
                for left_side, right_side in pairs:
                    torch.testing.assert_close(left_side, right_side, rtol=1e-3, atol=1e-3)

    check()


@pytest.mark.parametrize("to", ["mean", "resample"])
def test_batch_ablation_compares_prompts_at_the_same_position_and_never_padding(llama, to):
    three = [[5, 6, 7, 8, 9], [11, 12, 13], [21, 22, 23, 24, 25]]
    for pos in (None, -1, [0, -1]):
        if pos is None and to == "resample":
            three = [row[:3] for row in three]
        results = []
        for side in ("left", "right"):
            ids, mask, lefts = padded(three, side, 1)
            run = llama.run(
                ids,
                attention_mask=mask,
                do=pc.ablate("resid_post.1", to, pos=pos),
                record=["resid_pre.1", "resid_post.1"],
            )
            results.append([run["resid_post.1"][r, left : left + len(three[r])] for r, left in enumerate(lefts)])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    clean = [llama.run([p], record="resid_post.1")["resid_post.1"][0] for p in three]
    if to == "mean":
        torch.testing.assert_close(results[0][0][-1], sum(c[-1] for c in clean) / 3, rtol=1e-4, atol=1e-4)
    else:
        assert all(
            any(torch.allclose(results[0][r][-1], clean[o][-1], atol=1e-4) for o in range(3) if o != r)
            for r in range(3)
        )


def test_patching_a_source_that_is_too_short_is_an_error_and_never_its_padding(llama):
    source = llama.run([[1, 2, 3], [4, 5, 6, 7, 8]], record="resid_post.1")
    with pytest.raises(InterventionError, match="source has 3 tokens"):
        llama.run([[1, 2, 3, 4, 5], [4, 5, 6, 7, 8]], do=pc.patch("resid_post.1", source))
    llama.run([[1, 2, 3, 4, 5], [4, 5, 6, 7, 8]], do=pc.patch("resid_post.1", source, pos=-1))


def test_patching_between_left_and_right_padding(llama):
    right = llama.run(PROMPTS, record=["resid_post.1", "pattern.1", "k.1"])
    ids, mask, lefts = padded(PROMPTS, "left", 2)
    plain = llama.run(ids, attention_mask=mask).logits
    for site in ("resid_post.1", "pattern.1", "k.1"):
        same = llama.run(ids, attention_mask=mask, do=pc.patch(site, right)).logits
        for row, left in enumerate(lefts):
            torch.testing.assert_close(same[row, left:], plain[row, left:], rtol=1e-3, atol=1e-3)


# ── identities ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "opt", "bloom", "gptj", "phi3", "olmo2", "granite", "gpt_oss", "mixtral"]
)
def test_a_site_patched_with_its_own_value_changes_nothing(name):
    model = build(name)
    sites = model.sites()
    run = model.run(PROMPTS[0], record=sites)
    for site in sites:
        again = model.run(PROMPTS[0], do=pc.patch(site, run)).logits
        given = model.run(PROMPTS[0], do=pc.patch(site, run[site])).logits if site.kind != "expert_index" else again
        for logits in (again, given):
            torch.testing.assert_close(logits, run.logits, rtol=1e-4, atol=1e-4, msg=lambda m, s=site: f"{s}: {m}")


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_patching_the_last_stream_gives_the_other_runs_output(name):
    from patchclamp.anatomy.discover import trial_inputs

    model = build(name)
    one, two = trial_inputs(model.hf, seed=1), trial_inputs(model.hf, seed=2)
    last = f"resid_post.{model.n_layers - 1}"
    source = model.run(two, record=last)
    assert torch.equal(model.run(one, do=pc.patch(last, source)).logits, source.logits)


@pytest.mark.parametrize("name", ["granite", "gemma2", "gptj", "bloom", "cohere"])
def test_an_edit_of_a_contribution_adds_to_the_stream_what_it_says(name):
    model = build(name)
    bump = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    clean = model.run(
        PROMPTS[0], record=["resid_post.2", "resid_mid.2"] if "cohere" != name != "gptj" else "resid_post.2"
    )
    pairs = [
        ("mlp_out.2", "resid_post.2"),
        ("attn_out.2", "resid_mid.2" if len(clean.recording) > 1 else "resid_post.2"),
    ]
    for site, stream in pairs:
        moved = model.run(PROMPTS[0], do=pc.add(site, bump), record=stream)
        torch.testing.assert_close(moved[stream] - clean[stream], bump.expand(1, 7, -1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(dtype):
    model = build("llama", dtype=dtype)
    vector = torch.randn(32)
    do = [pc.add("resid_post.0", vector), pc.scale("pattern.1", 0.9), pc.project_out("resid_mid.1", vector)]
    run = model.run(PROMPTS, do=do, record=["resid_post.*", "pattern.*"])
    assert run.logits.dtype == run["resid_post.1"].dtype == run["pattern.1"].dtype == dtype
    assert torch.isfinite(run.logits).all()


def test_editing_a_router_changes_the_routing_and_an_expert_edit_the_output():
    model = build("mixtral")
    first = torch.tensor([9.0, 8.0, -9.0, -9.0])
    run = model.run(
        PROMPTS[0], do=pc.edit("router.1", lambda x: first.expand_as(x)), record=["expert_index.1", "mlp_out.1"]
    )
    assert set(run["expert_index.1"].unique().tolist()) == {0, 1}
    silent = model.run(PROMPTS[0], do=pc.ablate("expert_post.1"), record="mlp_out.1")
    assert not silent["mlp_out.1"].any()
    one = model.run(PROMPTS[0], do=pc.ablate("expert_post.1.0"), record=["mlp_out.1"])["mlp_out.1"]
    other = model.run(PROMPTS[0], do=pc.ablate("expert_post.1.1"), record=["mlp_out.1"])["mlp_out.1"]
    clean = model.run(PROMPTS[0], record="mlp_out.1")["mlp_out.1"]
    torch.testing.assert_close(one + other, clean, rtol=1e-4, atol=1e-4)


# ── what edits are given ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_edit_gets_a_copy_in_the_recorded_layout(gpt2):
    run = gpt2.run(PROMPTS[0], record=["pattern.1", "resid_pre.1", "resid_post.0"])
    seen = {}

    def write(x, site, start):
        seen[str(site)] = (x.clone(), start)
        x[:] = 0  # in place: what was recorded before must not change
        return x

    edited = gpt2.run(
        PROMPTS[0], do=[pc.edit("pattern.1", write), pc.edit("resid_pre.1", write, pos=0)], record=["resid_post.0"]
    )
    assert torch.equal(
        seen["pattern.1"][0], gpt2.run(PROMPTS[0], do=pc.ablate("resid_pre.1", pos=0), record="pattern.1")["pattern.1"]
    )
    assert torch.equal(seen["resid_pre.1"][0], run["resid_pre.1"]) and seen["resid_pre.1"][1] == 0
    assert torch.equal(edited["resid_post.0"], run["resid_post.0"])
    for fn, message in ((lambda x: None, "NoneType"), (lambda x: x[:, :2], r"\[1, 2, 32\]")):
        with pytest.raises(InterventionError, match=message):
            gpt2.run(PROMPTS[0], do=pc.edit("resid_pre.1", fn))
    assert torch.equal(
        gpt2.run(PROMPTS[0], do=pc.edit("mlp_pre.1", torch.relu)).logits,
        gpt2.run(PROMPTS[0], do=pc.edit("mlp_pre.1", lambda x, **context: x.clamp_min(0))).logits,
    )


def test_values_by_shape(gpt2):
    generator = torch.Generator().manual_seed(0)
    clean = gpt2.run(PROMPTS, record="resid_post.1")
    for shape in ((32,), (2, 32), (2, 1, 32), (1, 7, 32), (2, 7, 32)):
        value = torch.randn(shape, generator=generator)
        moved = gpt2.run(PROMPTS, do=pc.add("resid_post.1", value), record="resid_post.1")["resid_post.1"]
        wide = value if value.ndim == 3 else value.view(-1, 1, 32)
        for row, length in enumerate((7, 4)):
            delta = (moved - clean["resid_post.1"])[row, :length]
            torch.testing.assert_close(delta, wide.expand(2, 7, 32)[row, :length], rtol=1e-3, atol=1e-4)
        assert torch.equal(moved[1, 4:], clean["resid_post.1"][1, 4:])  # padding is left alone
    square = torch.rand(2, 4, 4, 4, generator=generator)  # as many heads as queries: the axes must not be confused
    four = [p[:4] for p in PROMPTS]
    assert torch.equal(gpt2.run(four, do=pc.patch("pattern.1", square), record="pattern.1")["pattern.1"], square)
    for bad in (torch.zeros(31), torch.zeros(3, 32), torch.zeros(2, 5, 32)):
        with pytest.raises(InterventionError, match=r"does not fit resid_post.1 .*give \[32\]"):
            gpt2.run(PROMPTS, do=pc.add("resid_post.1", bad))


def test_rows_and_positions_out_of_range_are_errors(gpt2):
    with pytest.raises(InterventionError, match=r"rows=\[2\] of 2 prompts"):
        gpt2.run(PROMPTS, do=pc.ablate("z.1", rows=[0, 2]))
    with pytest.raises(PositionError, match="position 5 of prompt 1, which has 4 tokens"):
        gpt2.run(PROMPTS, do=pc.ablate("z.1", pos=5))
    with pytest.raises(PositionError, match="2:6 of prompt 1"):
        gpt2.run(PROMPTS, do=pc.ablate("z.1", pos=slice(2, 6)))
    with pytest.raises(PositionError, match="at most 2 generated"):
        gpt2.generate(PROMPTS, do=pc.ablate("z.1", pos=6), max_new_tokens=2)
    with pytest.raises(PositionError, match="whole numbers"):
        gpt2.run(PROMPTS, do=pc.ablate("z.1", pos=1.5))
    with pytest.raises(PositionError, match="padding of prompt 1"):
        gpt2.run(PROMPTS, do=pc.ablate("z.1", pos=torch.ones(2, 7, dtype=torch.bool)))
    only = gpt2.run(PROMPTS, do=pc.ablate("resid_post.1", rows=[1]), record="resid_post.1")["resid_post.1"]
    assert only[0].any() and not only[1, :4].any()


def test_what_cannot_be_meant_is_refused_when_it_is_written(gpt2):
    with pytest.raises(pc.SiteError, match="did you mean 'resid_post'"):
        pc.add("resid_pots.1", torch.zeros(32))
    for make in (
        lambda: pc.ablate("z.1", "zeros"),
        lambda: pc.ablate("z.1", when="later"),
        lambda: pc.edit("z.1", 3),
        lambda: pc.add("z.1", "a vector"),
    ):
        with pytest.raises(InterventionError):
            make()
    with pytest.raises(TypeError):
        pc.add("z.1", torch.zeros(8), position=3)
    with pytest.raises(TypeError, match="do= takes interventions"):
        gpt2.run(PROMPTS, do=["z.1"])
    with pytest.raises(InterventionError, match="one prompt"):
        gpt2.run(PROMPTS[0], do=pc.ablate("z.1", "mean"))
    with pytest.raises(InterventionError, match="reduced"):
        gpt2.run(PROMPTS, do=pc.patch("resid_post.1", gpt2.run(PROMPTS, record=pc.keep("resid_post.1", reduce="norm"))))


def test_projection_out_of_directions():
    model = build("gpt2")
    one, two = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    run = model.run(
        PROMPTS, do=pc.project_out("resid_post.1", torch.stack([one, two, one + two])), record="resid_post.1"
    )
    x, clean = run["resid_post.1"][0], model.run(PROMPTS, record="resid_post.1")["resid_post.1"][0]
    assert float((x @ one).abs().max()) < 1e-3 and float((x @ two).abs().max()) < 1e-3
    assert torch.linalg.matrix_rank(clean - x, tol=1e-3) == 2  # dependent directions take nothing else with them
    held = model.run(PROMPTS, do=pc.clamp("resid_post.1", 3.0, direction=one), record="resid_post.1")["resid_post.1"]
    torch.testing.assert_close(held[0] @ (one / one.norm()), torch.full((7,), 3.0), rtol=1e-4, atol=1e-4)
    for bad, message in ((torch.zeros(32), "zeros"), (torch.zeros(64), "features")):
        with pytest.raises(InterventionError, match=message):
            model.run(PROMPTS, do=pc.project_out("resid_post.1", bad))


# ── recordings as sources, on disk ────────────────────────────────────────────────────────────────────────────────────


def test_a_source_with_several_settings_is_read_site_by_site(gpt2):
    source = gpt2.run(PROMPTS, record=[pc.keep("z.1", positions=-1), "resid_post.1"])
    whole = gpt2.run(PROMPTS, record=["z.1", "resid_post.1"])
    other = [[3] * 7, [4] * 4]
    for do in (lambda s: pc.patch("z.1", s, pos=-1), lambda s: pc.patch("resid_post.1", s, pos=[1, 2])):
        assert torch.equal(gpt2.run(other, do=do(source)).logits, gpt2.run(other, do=do(whole)).logits)
    with pytest.raises(InterventionError, match="did not keep"):
        gpt2.run(other, do=pc.patch("z.1", source, pos=0))
    with pytest.raises(InterventionError, match="not recorded"):
        gpt2.run(other, do=pc.patch("z.2", source))


def test_saved_interventions_do_the_same(gpt2, tmp_path):
    source = gpt2.run(PROMPTS, record=[pc.keep("z.1", positions=-1), "resid_post.1"]).recording
    do = [
        pc.patch("z.1.2", source, pos=-1),
        pc.patch("resid_post.1", source, pos=[1, 2], rows=[0]),
        pc.add("mlp_out.0", torch.randn(32), scale=2.0, pos=slice(1, 3), when="prompt"),
        pc.ablate("z.0.1", "resample", pos=[0, -1], seed=3),
        pc.clamp("resid_pre.2", 1.0, direction=torch.randn(32)),
        pc.project_out("resid_mid.1", torch.randn(2, 32)),
        pc.scale("attn_out.1", 0.5, pos=torch.tensor([[0], [2]])),
    ]
    interventions.save(do, tmp_path / "do")
    again = interventions.load(tmp_path / "do")
    assert torch.equal(gpt2.run(PROMPTS, do=do).logits, gpt2.run(PROMPTS, do=again).logits)
    source.save(tmp_path / "source")
    loaded = Recording.load(tmp_path / "source")
    assert torch.equal(
        gpt2.run(PROMPTS, do=pc.patch("z.1", loaded, pos=-1)).logits,
        gpt2.run(PROMPTS, do=pc.patch("z.1", source, pos=-1)).logits,
    )
    with pytest.raises(InterventionError, match="Python function"):
        interventions.save([pc.edit("z.1", lambda x: x)], tmp_path / "edit")


def test_sampling_is_seeded_and_leaves_the_global_generator(gpt2):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, three = (gpt2.generate(PROMPTS, max_new_tokens=12, do_sample=True, seed=s).tokens for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, two) and not torch.equal(one, three)
