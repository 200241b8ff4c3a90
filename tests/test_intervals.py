"""95 % intervals against known numbers."""

import pytest
import torch

from patchclamp.intervals import bootstrap, wilson


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    drawn = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)) + 3
    ends = [bootstrap(values, seed) for seed, values in enumerate(drawn)]
    assert 0.9 <= sum(low <= 3 <= high for low, high in ends) / 200 <= 0.98


def test_the_same_seed_gives_the_same_ends():
    values = torch.arange(10.0)
    assert bootstrap(values, 4) == bootstrap(values, 4) != bootstrap(values, 5)


def test_hits_that_all_agree_still_have_a_width():
    assert bootstrap(torch.ones(20)) == (pytest.approx(0.8389, abs=1e-4), 1.0)
    assert bootstrap(torch.zeros(20)) == (0.0, pytest.approx(0.1611, abs=1e-4))


@pytest.mark.parametrize(
    ("hits", "n", "ends"), [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (1, 29, (0.0061, 0.1718))]
)
def test_wilson_is_as_published(hits, n, ends):
    """Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3."""
    assert wilson(hits / n, n) == pytest.approx(ends, abs=5e-5)
