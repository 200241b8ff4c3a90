"""The study end to end, which takes a minute, and its pieces, which take no time."""

import pytest
import torch

from patchclamp import studies
from patchclamp.studies.dictionaries.superposition_to_codes import crossing, generator_of, r_squared


def test_where_a_curve_crosses():
    assert crossing({4: 0.1, 8: 0.4, 16: 0.6, 32: 1.0}, 0.5) == pytest.approx(8 * 2**0.5)
    assert crossing({4: 0.0, 64: 0.2}, 0.5) == 64 and crossing({4: 0.9, 64: 1.0}, 0.5) == 4


def test_the_generator_is_invertible_and_bends():
    generate = generator_of(4, torch.Generator().manual_seed(0))
    u = torch.randn(500, 4, generator=torch.Generator().manual_seed(1)).double()
    with pytest.raises(RuntimeError, match="dtype"):
        generate(u)
    x = generate(u.float())
    inverse = torch.autograd.functional.jacobian(generate, u[0].float())
    assert torch.linalg.det(inverse).abs() > 0
    assert r_squared((x[:250], u[:250].float()), (x[250:], u[250:].float())) < 0.95


def test_a_linear_map_with_a_shift_has_an_r_squared_of_one_and_noise_none():
    h = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    u = h @ torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) + 2
    assert r_squared((h[:200], u[:200]), (h[200:], u[200:])) == pytest.approx(1.0)
    noise = torch.randn(400, 3, generator=torch.Generator().manual_seed(2))
    assert r_squared((h[:200], noise[:200]), (h[200:], noise[200:])) < 0.1


@pytest.mark.slow
def test_every_claim_holds():
    verdict = studies.run("superposition-to-codes")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


@pytest.mark.slow
def test_no_finding_holds_untrained_and_all_identities_do():
    verdict = studies.run("superposition-to-codes", model="random")
    assert {claim.holds for claim in verdict.claims if claim.kind == "finding"} == {False}
    assert {claim.holds for claim in verdict.claims if claim.kind == "identity"} == {True}
