import pytest
import torch

from patchclamp.dictionaries.measures import random_dictionary
from patchclamp.evaluation import identity, pca, recovered, zero

SITE = "resid_post.1"


@pytest.fixture(scope="module")
def texts(documents):
    return [document.text for document in documents[:12]]


def test_identity_recovers_everything_and_zeros_nothing_exactly(tales, texts):
    full, nothing = (recovered(tales, one, SITE, texts) for one in (identity(96), zero(96)))
    assert full.loss == {"zero": 1.0, "mean": 1.0} and full.kl == {"zero": 1.0, "mean": 1.0}
    assert nothing.loss["zero"] == 0.0 and nothing.kl["zero"] == 0.0
    assert full.interval("loss", "zero") == (1.0, 1.0) and nothing.interval("kl", "zero") == (0.0, 0.0)


def test_the_mean_explained_recovers_nothing_against_the_mean(tales, texts):
    run = tales.run(texts, record=SITE)
    mask = run.mask.clone()
    mask[:, 0] = False
    rows = run[SITE][mask]
    constant = zero(96)
    constant.b_dec.copy_(rows.double().mean(0).float())
    found = recovered(tales, constant, SITE, texts)
    assert found.loss["mean"] == pytest.approx(0.0, abs=1e-6) and found.kl["mean"] == pytest.approx(0.0, abs=1e-6)
    best = recovered(tales, pca(rows), SITE, texts)
    assert best.loss["zero"] == pytest.approx(1.0, abs=1e-4)


def test_losses_are_the_models_own_and_do_not_depend_on_batches(tales, texts):
    one = random_dictionary(identity(96).cpu())
    whole, apart = (recovered(tales, one, SITE, texts, batch=size) for size in (64, 5))
    for name in whole.cross_entropy:
        assert torch.allclose(whole.cross_entropy[name], apart.cross_entropy[name], atol=1e-3)
    assert torch.equal(whole.predictions, apart.predictions)
    total, count = 0.0, 0
    for text in texts:
        run = tales.run(text)
        ids = run.tokens.ids[0]
        log = run.logits[0, 1:-1].double().log_softmax(-1)
        total -= float(log.gather(1, ids[2:, None]).sum())
        count += len(ids) - 2
    assert whole.per_token["CE clean"] == pytest.approx(total / count, rel=1e-5)
    assert int(whole.predictions.sum()) == count


def test_positions_that_are_skipped_stay_as_they_are(tales, texts):
    length = int(tales.tokens(texts).mask.sum(1).min())
    found = recovered(tales, zero(96), SITE, texts, skip_first=length - 2)
    assert found.per_token["KL zero"] > 0
    with pytest.raises(ValueError, match="no prompt has a token"):
        recovered(tales, zero(96), SITE, texts[:1], skip_first=500)


def test_a_transcoder_stands_in_at_the_site_that_it_writes(tales, texts):
    """One that writes nothing is the zero-ablated output, whatever it reads."""
    found = recovered(tales, zero(96), ("mlp_in.1", "mlp_out.1"), texts)
    assert found.loss["zero"] == 0.0
    plain = recovered(tales, zero(96), "mlp_out.1", texts)
    assert found.per_token["CE spliced"] == plain.per_token["CE spliced"]


def test_an_ablation_that_does_no_harm_leaves_nothing_to_recover(tales, texts):
    found = recovered(tales, identity(96), SITE, texts)
    found.cross_entropy["zero"].copy_(found.cross_entropy["clean"])
    assert found.loss["zero"] != found.loss["zero"]
