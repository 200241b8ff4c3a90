"""The study end to end; on random weights no finding holds."""

import pytest
import torch

from patchclamp import studies
from patchclamp.steering import Direction
from patchclamp.studies.steering.broad_steering import _sum


def test_merged_directions_are_their_sum_at_one_place_and_of_one_length():
    parts = [Direction("resid_post.0", torch.tensor([3.0, 0.0])), Direction("resid_post.1", torch.tensor([0.0, 4.0]))]
    one = _sum(parts, "resid_post.1", norm=10.0)
    assert one.site == "resid_post.1"
    torch.testing.assert_close(one.vector, torch.tensor([6.0, 8.0]))


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("broad-steering", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
