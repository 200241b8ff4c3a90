"""The study end to end; on random weights no finding holds."""

import pytest
import torch

from patchclamp import studies
from patchclamp.organisms import Truth
from patchclamp.steering import Direction
from patchclamp.studies.lab import Lab
from patchclamp.studies.steering import _styles as styles
from patchclamp.studies.steering.broad_steering import Bench, _sum


def test_merged_directions_are_their_sum_at_one_place_and_of_one_length():
    parts = [Direction("resid_post.0", torch.tensor([3.0, 0.0])), Direction("resid_post.1", torch.tensor([0.0, 4.0]))]
    one = _sum(parts, "resid_post.1", norm=10.0)
    assert one.site == "resid_post.1"
    torch.testing.assert_close(one.vector, torch.tensor([6.0, 8.0]))


def test_words_of_a_sort_are_nearly_all_of_the_set_that_the_style_says():
    generator = torch.Generator().manual_seed(0)
    on = styles.drawn(400, generator)
    ids = styles.texts(on, generator)
    assert ids.shape == (400, styles.LENGTH) and bool((ids[:, 0] == styles.START).all())
    for style in range(styles.STYLES):
        words = ids[:, 1 + style :: styles.STYLES]
        has = torch.isin(words, styles.SETS[style, 1]).float()
        assert torch.isin(words, styles.SETS[style]).all()
        assert float(has[on[:, style] == 1].mean()) == pytest.approx(1 - styles.STRAY, abs=0.02)
        assert float(has[on[:, style] == 0].mean()) == pytest.approx(styles.STRAY, abs=0.02)


def test_without_directions_no_style_moves_and_all_layers_have_a_direction():
    bench = Bench.of(Lab(model=None, truth=Truth(name="planted"), untrained=True), 0)
    assert [len(by_layer) for by_layer in bench.vectors] == [bench.model.n_layers] * styles.STYLES
    assert torch.equal(bench.moved([], bench.judge), torch.zeros(styles.STYLES, len(bench.judge), dtype=torch.float64))
    assert bench.least([9.0 * bench.vectors[2][1]]) < 0.05


@pytest.mark.slow
def test_it_holds():
    verdict = studies.run("broad-steering")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("broad-steering", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
