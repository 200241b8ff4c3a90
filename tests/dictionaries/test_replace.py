"""Transcoders in the place of MLPs: exact where they are exact, nothing changed where errors are kept, and fidelity."""

import pytest
import torch

import patchclamp as pc
import tiny
from patchclamp.dictionaries import CrossLayerTranscoder, Dictionary, fidelity, replaced, without
from patchclamp.dictionaries.replace import kl

IDS = torch.randint(3, 99, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return pc.wrap(tiny.build("llama"))


def transcoder(seed: int, skip: bool = False) -> Dictionary:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g) * 0.3  # noqa: E731
    return Dictionary(
        draw(40, 32), draw(40), draw(40, 32), draw(32), b_in=draw(32), W_skip=draw(32, 32) if skip else None
    )


def crosslayer() -> CrossLayerTranscoder:
    g = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=g) * 0.3  # noqa: E731
    return CrossLayerTranscoder(
        draw(3, 20, 32), draw(3, 20), [draw(20 * (m + 1), 32) for m in range(3)], draw(3, 32), b_in=draw(3, 32)
    )


def test_each_mlp_says_what_its_transcoder_explains(model):
    transcoders = {0: transcoder(0), 2: transcoder(2, skip=True)}
    run = model.run(IDS, do=replaced(transcoders), record=["mlp_in.*", "mlp_out.*"])
    for layer, one in transcoders.items():
        torch.testing.assert_close(run[f"mlp_out.{layer}"], one(run[f"mlp_in.{layer}"]))


def test_across_layers_too(model):
    t = crosslayer()
    run = model.run(IDS, do=replaced(t), record=["mlp_in.*", "mlp_out.*"])
    x = torch.stack([run[f"mlp_in.{i}"] for i in range(3)], 2)
    torch.testing.assert_close(torch.stack([run[f"mlp_out.{i}"] for i in range(3)], 2), t(x))


@pytest.mark.parametrize("transcoders", [{0: transcoder(0), 1: transcoder(1, skip=True)}, crosslayer()])
def test_with_errors_kept_nothing_changes_but_what_is_changed(model, transcoders):
    clean = model.run(IDS, record=["mlp_in.1", "mlp_out.1"])
    assert torch.equal(model.run(IDS, do=replaced(transcoders, error="keep")).logits, clean.logits)
    one = isinstance(transcoders, dict)
    codes = transcoders[1].encode(clean["mlp_in.1"]) if one else transcoders.encode_layer(1, clean["mlp_in.1"])
    latent = int(codes.counts().argmax())
    do = replaced(transcoders, error="keep", change=without([(1, latent)]))
    row = transcoders[1].W_dec[latent] if one else transcoders.writes(1, latent)[0]
    expected = clean["mlp_out.1"] - codes.of(latent)[..., None] * row
    torch.testing.assert_close(model.run(IDS, do=do, record="mlp_out.1")["mlp_out.1"], expected, rtol=1e-4, atol=1e-5)
    last = replaced(transcoders, error="keep", change=without([(1, latent)], pos=[8]))
    there = model.run(IDS, do=last, record="mlp_out.1")["mlp_out.1"]
    torch.testing.assert_close(there[:, :8], clean["mlp_out.1"][:, :8], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there[:, 8], expected[:, 8], rtol=1e-4, atol=1e-5)


def test_fidelity_is_one_for_nothing_and_zero_for_the_mean(model):
    kept = fidelity(model, IDS, replaced({1: transcoder(1)}, error="keep"))
    assert kept.ce_changed == kept.ce and abs(kept.kl_changed) < 1e-6 and kept.kl_recovered == pytest.approx(1)
    mean = model.run(IDS, record="mlp_out.1")["mlp_out.1"].flatten(0, 1).mean(0)
    gone = fidelity(model, IDS, [pc.ablate("mlp_out.1", to=mean)])
    assert gone.kl_recovered == pytest.approx(0, abs=1e-4) and gone.ce_changed == pytest.approx(gone.ce_ablated)
    logits = model.run(IDS).logits
    assert kept.ce == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())), rel=1e-5
    )


def test_padding_counts_for_nothing(model):
    do = replaced({1: transcoder(1)})
    short, long = IDS[:1, :5].tolist()[0], IDS[1].tolist()
    both = fidelity(model, [short, long], do, ablated=["mlp_out.1"])
    apart = [fidelity(model, [one], do, ablated=["mlp_out.1"]) for one in (short, long)]
    assert both.kl_changed == pytest.approx((apart[0].kl_changed * 5 + apart[1].kl_changed * 9) / 14, rel=1e-4)
    assert both.ce == pytest.approx((apart[0].ce * 4 + apart[1].ce * 8) / 12, rel=1e-5)


def test_kl_is_torchs():
    a, b = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl(a, b), expected)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="dropped"):
        replaced({0: transcoder(0)}, error="none")  # type: ignore[arg-type]
    pair = Dictionary(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4), shape_in=(2, 2), shape_out=(2, 2))
    with pytest.raises(ValueError, match="one site"):
        replaced({0: pair})
