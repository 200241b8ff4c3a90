"""The grammar of sites: what is written is what is meant, or an error says what may have been."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from patchclamp.model import wrap
from patchclamp.sites import KINDS, Site, SiteError, indices, parse


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 40), st.integers(0, 40), st.sampled_from(["", "encoder"]))
def test_a_sites_name_is_read_back(kind, layer, unit, stack):
    site = Site(kind, layer if KINDS[kind].layered else None, unit if KINDS[kind].unit else None, stack)
    parsed = parse(str(site))
    assert (parsed.kinds, parsed.stack) == ((kind,), stack)
    assert parsed.layer == (str(layer) if KINDS[kind].layered else None)
    assert parsed.unit == (str(unit) if KINDS[kind].unit else None)
    assert len(site.dims) == len(KINDS[kind].dims) - (site.unit is not None)


@given(st.integers(1, 12), st.integers(-14, 14), st.integers(-14, 14))
def test_ranges_are_pythons_but_never_clipped(size, start, stop):
    first, last = start % size if -size <= start < size else None, stop + size if stop < 0 else stop
    if first is None or not first < last <= size:
        with pytest.raises(SiteError, match=f"there are {size}"):
            indices(f"{start}:{stop}", size, what="layer", within="z")
    else:
        assert indices(f"{start}:{stop}", size, what="layer", within="z") == list(range(size))[start:last]


def test_several_patterns_name_each_site_once_in_the_order_in_which_it_is_recorded():
    model = wrap(tiny.build("gpt2"))
    several = ["z.1.{2,0}", Site("z", 0, 1), "mlp_out.1:", "z.1.*", "blocks.0.attn.hook_z", "mlp_out.2"]
    found = model.sites(several)
    assert list(map(str, found)) == ["z.1.2", "z.1.0", "z.0.1", "mlp_out.1", "mlp_out.2", "z.1.1", "z.1.3", "z.0"]
    assert list(model.run([[5, 6, 7]], record=several).recording) == found == model.sites(tuple(found))
    assert model.sites([]) == [] and model.sites(["z.1"]) == model.sites("z.1") == model.sites(Site("z", 1))
    with pytest.raises(SiteError, match="asks for layer 7"):
        model.sites(["z.1", "z.7"])


def test_patterns_expand_in_the_models_order():
    inventory = wrap(tiny.build("llama")).anatomy.inventory
    assert [str(s) for s in inventory.expand("z.{0,-1}.*")][:5] == ["z.0.0", "z.0.1", "z.0.2", "z.0.3", "z.2.0"]
    assert [str(s) for s in inventory.expand("k.1.*")] == ["k.1.0", "k.1.1"]
    assert [str(s) for s in inventory.expand("resid_post.1:")] == ["resid_post.1", "resid_post.2"]
    assert inventory.expand(Site("z", 1, 3)) == [Site("z", 1, 3)]
    mixed = wrap(tiny.build("qwen3_moe")).anatomy.inventory  # layer 1 is dense
    assert [s.layer for s in mixed.expand("router.*")] == [0, 2] and [s.layer for s in mixed.expand("mlp_post.*")] == [
        1
    ]
    with pytest.raises(SiteError, match=r"has no router\.1 .*dense"):
        mixed.expand("router.1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resid_pots.1", "did you mean 'resid_post'"),
        ("z", "names no layer"),
        ("z.1.2.3", "too many parts"),
        ("z.one", "is no index"),
        ("resid_post.1.2", "too many parts"),
        ("blocks.1.attn.hook_zz", "hook_z'"),
        ("hook_embde", "hook_embed"),
    ],
)
def test_what_cannot_be_read_says_why(text, message):
    with pytest.raises(SiteError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.1.hook_resid_pre", "resid_pre.1"),
        ("blocks.*.attn.hook_pattern", "pattern.*"),
        ("blocks.0.mlp.hook_pre", "mlp_gate.0"),
        ("blocks.2.attn.hook_rot_k", "k.2"),
        ("ln_final.hook_normalized", "final_norm"),
        ("unembed.hook_out", "logits"),
    ],
)
def test_transformer_lens_names(theirs, ours):
    inventory = wrap(tiny.build("llama")).anatomy.inventory
    assert inventory.expand(theirs) == inventory.expand(ours)


def test_queries_before_rotary_are_not_passed_off_as_queries():
    for name, plain in (("gpt2", True), ("bloom", True), ("llama", False), ("gptj", False), ("qwen3", False)):
        inventory = wrap(tiny.build(name)).anatomy.inventory
        for letter in "qk":
            if plain:
                assert inventory.expand(f"blocks.1.attn.hook_{letter}") == [Site(letter, 1)]
            else:
                with pytest.raises(SiteError, match="before rotary"):
                    inventory.expand(f"blocks.1.attn.hook_{letter}")
