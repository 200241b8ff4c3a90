"""The groups are groups, and their irreps have the sums of squares and the orthogonality that the theory demands."""

import pytest
import torch

from patchclamp.organisms.algorithms.finite_groups import character_shares, group, irreps, projector, span_shares

NAMES = ("c30", "d12", "s4", "a4", "a5", "s5", "c7", "s3")


@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_a_group_s(name):
    g = group(name)
    n = len(g)
    everyone = torch.arange(n)
    assert (g.table.sort(0).values == everyone[:, None]).all() and (g.table.sort(1).values == everyone).all()
    assert (g.table[0] == everyone).all() and (g.table[:, 0] == everyone).all()
    assert (g.table[everyone, g.inverse] == 0).all() and (g.table[g.inverse, everyone] == 0).all()
    a, b, c = torch.randint(n, (3, 500), generator=torch.Generator().manual_seed(0))
    assert (g.table[g.table[a, b], c] == g.table[a, g.table[b, c]]).all()


def test_products_are_composed_right_to_left():
    g = group("s4")
    a, b = g.elements[7], g.elements[13]
    assert g.elements[int(g.table[7, 13])] == tuple(a[i] for i in b)


@pytest.mark.parametrize("name", NAMES)
def test_squared_dimensions_sum_to_the_order_and_characters_are_orthonormal(name):
    g = group(name)
    found = irreps(g)
    assert sum(irrep.dimension**2 * (1 + irrep.pair) for irrep in found) == len(g)
    characters = torch.stack([irrep.character / (1 + irrep.pair) ** 0.5 for irrep in found])
    assert (characters @ characters.T / len(g) - torch.eye(len(found))).abs().max() < 1e-9
    assert found[0].dimension == 1 and (found[0].character - 1).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["s4", "a4", "d12"])
def test_characters_are_constant_on_conjugacy_classes(name):
    g = group(name)
    x = torch.arange(len(g))
    for irrep in irreps(g):
        for a in range(len(g)):
            conjugate = g.table[g.table[a, x], g.inverse[a]]
            assert (irrep.character[conjugate] - irrep.character).abs().max() < 1e-9


def test_dimensions_of_known_groups():
    assert [irrep.dimension for irrep in irreps(group("s4"))] == [1, 1, 2, 3, 3]
    assert [irrep.dimension for irrep in irreps(group("a5"))] == [1, 3, 3, 4, 5]
    assert [(irrep.dimension, irrep.pair) for irrep in irreps(group("a4"))] == [(1, False), (1, True), (3, False)]


def test_projectors_divide_space_among_the_irreps():
    g = group("s4")
    parts = [projector(irrep, g) for irrep in irreps(g)]
    assert (sum(parts) - torch.eye(24)).abs().max() < 1e-9
    for part in parts:
        assert (part @ part - part).abs().max() < 1e-9 and (part - part.T).abs().max() < 1e-9
    rows = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    assert sum(span_shares(rows, g).values()) == pytest.approx(1.0)


def test_shares_of_a_character_cube_and_of_noise():
    g = group("s4")
    chosen = irreps(g)[3]
    quotient = g.table[g.table[:, :, None], g.inverse]
    shares = character_shares(chosen.character[quotient], g)
    assert shares[chosen.name] == pytest.approx(1.0) and sum(shares.values()) == pytest.approx(1.0)
    noise = torch.randn(24, 24, 24, generator=torch.Generator().manual_seed(0))
    assert sum(character_shares(noise, g).values()) < 0.01


@pytest.mark.parametrize("name", ["s", "q8", "d2", "S4"])
def test_an_unknown_group_is_refused(name):
    with pytest.raises(ValueError, match="no group is called"):
        group(name)
