import pytest
import torch

from patchclamp.dictionaries import Codes, Dictionary, measures


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tied(rows, k=2):
    return Dictionary(rows, torch.zeros(len(rows)), rows, torch.zeros(rows.shape[1]), select="topk", k=k)


def test_fvu_is_the_residual_variance_and_is_one_for_the_mean():
    x, y = draw(50, 6) + 5, draw(50, 6, seed=1)
    # Summed over dimensions, each with its own mean: not E[x^2], and not one mean for all dimensions.
    assert measures.fvu(x, y) == pytest.approx(
        float(((x - y) ** 2).mean(0).sum() / x.var(0, correction=0).sum()), rel=1e-6
    )
    assert measures.fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1.0)
    assert measures.fvu(x, x) == 0.0
    with pytest.raises(ValueError, match="at least 2"):
        measures.fvu(x[:1], x[:1])


def test_shrinkage_is_the_factor_of_a_shrunken_copy():
    x = draw(40, 5)
    for factor in (0.5, 1.0, 1.3):
        assert measures.shrinkage(x, factor * x) == pytest.approx(factor, rel=1e-6)


def test_a_permuted_scaled_flipped_copy_of_the_truth_matches_perfectly_and_a_rotation_does_not():
    true = draw(12, 20)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    scale = draw(12, 1, seed=2).abs() + 0.1
    found = measures.match(true[order] * scale, true)
    assert found.mean == pytest.approx(1.0) and torch.equal(order[found.latent], torch.arange(12))
    assert measures.recovered(true[order] * scale, true) == 1.0
    assert measures.match(-true[order], true, signed=False).mean == pytest.approx(1.0)
    rotation = torch.linalg.qr(draw(20, 20, seed=3)).Q
    assert measures.match(true @ rotation, true).mean < 0.6
    assert measures.recovered(true @ rotation, true) == 0.0
    codes = draw(300, 12).relu()
    assert measures.mcc(codes[:, order] * scale.T, codes) == pytest.approx(1.0)
    assert measures.mcc(draw(300, 12, seed=9), codes) < 0.3
    with pytest.raises(ValueError, match="cannot be paired"):
        measures.match(true[:5], true)


def test_firing_and_absorption_count_rows():
    codes = Codes(torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]]), 3)
    fires = torch.tensor([[True, False], [True, True], [False, True]])
    assert measures.firing_f1(codes, torch.tensor([0, 2]), fires).tolist() == pytest.approx([2 / 3, 1.0])
    assert measures.absorption(codes, 0, torch.tensor([True, True, False])) == 0.5
    assert measures.density(codes).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert codes.counts().tolist() == [1, 1, 2] and codes.l0().tolist() == [1, 2, 1]


def test_a_report_has_a_random_dictionary_beside_it():
    true = torch.nn.functional.normalize(draw(16, 12), dim=1)
    codes = torch.rand(500, 16, generator=torch.Generator().manual_seed(1)) + 0.5
    active = torch.rand(500, 16, generator=torch.Generator().manual_seed(2)) < 2 / 16
    figures = measures.report(tied(true), (codes * active) @ true)
    assert figures["fvu"] < 0.7 * figures["random"]["fvu"]
    assert figures["l0"] <= 2 and figures["dead"] == 0


def test_identical_decoder_rows_are_each_other_s_nearest():
    rows = draw(5, 8)
    assert measures.decoder_cosines(tied(torch.cat([rows, rows[:1]])))[[0, 5]].tolist() == pytest.approx([1.0, 1.0])


def test_a_report_of_several_seeds_has_their_spread_and_as_many_components_beside_it():
    x = draw(400, 12) * torch.linspace(0.2, 2, 12)
    several = [tied(torch.nn.functional.normalize(draw(16, 12, seed=seed), dim=1), k=3) for seed in range(3)]
    figures = measures.report(several, x)
    alone = [measures.report(each, x)["fvu"] for each in several]
    assert figures["fvu"] == pytest.approx(sum(alone) / 3)
    assert figures["error"]["fvu"] == pytest.approx(float(torch.tensor(alone).std()), rel=1e-4)
    numbers = round(figures["l0"])
    centred = (x - x.mean(0)).double()
    low = torch.linalg.svd(centred).Vh[:numbers]
    assert figures["pca"]["fvu"] == pytest.approx(measures.fvu(centred, centred @ low.T @ low), rel=1e-6)
    kept = torch.zeros_like(centred).scatter(1, centred.abs().topk(numbers).indices, 1.0)
    assert figures["units"]["fvu"] == pytest.approx(measures.fvu(centred, centred * kept), rel=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        measures.report([], x)


def test_signs_and_copies_are_counted():
    true = torch.eye(4)
    assert measures.recovered(-true, true) == 0 and measures.recovered(-true, true, signed=False) == 1
    assert measures.splitting(torch.cat([true[:2], true[:1]]), true) == 1.5
    assert measures.splitting(true, true) == 1
