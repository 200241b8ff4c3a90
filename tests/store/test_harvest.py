import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.sites import Site, SiteError
from patchclamp.store.harvest import context_of, harvest, sites_of, widths
from patchclamp.store.units import Cut, units


def unit_of(documents, **cut):
    (unit,) = units(documents, Cut(**({"context": 12, "unit_tokens": 10_000} | cut)))
    return unit


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "roberta", "gemma2", "mixtral"])
def test_padding_changes_nothing_in_any_architecture(name, documents):
    model = pc.wrap(tiny.build(name))
    sites = sites_of(model, ["resid_post.1", "z.2", "mlp_out.0"])
    unit = unit_of(documents[:12], skip_first=1)
    together = harvest(model, unit, sites, seed=3, batch_tokens=500)
    labels = unit.labels()[unit.order(3)]
    for site in sites:
        for i in range(0, unit.rows, 7):
            d, p = int(labels.document[i]), int(labels.position[i])
            window = documents[d][p // 12 * 12 : p // 12 * 12 + 12]
            alone = model.run([window], record=site)[site][0, p % 12].flatten()
            assert torch.allclose(together[str(site)][i], alone, atol=2e-5)


def test_a_pass_ends_after_the_last_site_and_takes_many_windows(model, documents):
    calls = {0: [], 1: [], 2: []}
    sites = sites_of(model, ["resid_post.0", "mlp_out.1"])  # which looks the model over, once
    handles = [
        model.hf.model.layers[k].register_forward_pre_hook(lambda mod, args, k=k: calls[k].append(args[0].shape[:2]))
        for k in calls
    ]
    unit = unit_of(documents)
    try:
        harvest(model, unit, sites, seed=0, batch_tokens=240)
    finally:
        for handle in handles:
            handle.remove()
    assert calls[0] == calls[1] and calls[2] == []
    assert len(calls[0]) < len(unit.lengths) / 10 and all(shape.numel() <= 240 for shape in calls[0])
    assert sum(shape.numel() for shape in calls[0]) < 1.2 * len(unit.token)  # little padding


def test_rows_keep_the_dtype_of_the_model(documents):
    model = pc.wrap(tiny.build("llama", dtype=torch.bfloat16))
    rows = harvest(model, unit_of(documents[:3]), sites_of(model, "resid_post.0"), seed=0, batch_tokens=99)
    assert rows["resid_post.0"].dtype == torch.bfloat16


def test_sites_are_named_once_and_have_a_row_for_each_token(model):
    found = sites_of(model, ["resid_post.1", Site("z", 0), "resid_post.*"])
    assert [str(site) for site in found] == ["resid_post.1", "z.0", "resid_post.0", "resid_post.2"]
    assert widths(model, found, 0)["z.0"].shape == (4, 8)
    with pytest.raises(SiteError, match="for each query and key"):
        sites_of(model, "scores.0")
    vision = pc.wrap(torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten()))
    with pytest.raises(SiteError, match=r"module:1 gives .* for tokens \[1, 2\]"):
        widths(vision, sites_of(vision, "module:1"), 0)


def test_the_context_is_what_the_model_takes(model):
    assert context_of(model, None) == 64 and context_of(model, 5) == 5
    assert context_of(pc.wrap(torch.nn.Embedding(9, 4)), None) == 1024
    with pytest.raises(ValueError, match="at most 64 tokens"):
        context_of(model, 65)
