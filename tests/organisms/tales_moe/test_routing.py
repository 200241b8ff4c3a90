import math
from collections import Counter

import pytest
import torch

from patchclamp.organisms.tales import grammar
from patchclamp.organisms.tales_moe.routing import PARTITIONS, Routes, label, sample, specialisation

N = 60


def routed(choose, length=6, layers=2, seed=0):
    """Routes of N documents of some random tokens, whose experts are chosen by `choose(document, token, generator)`."""
    generator = torch.Generator().manual_seed(seed)
    document = torch.arange(N).repeat_interleave(length)
    token = torch.randint(5, (N * length,), generator=generator)
    rows = [[choose(int(d), int(t), generator) for d, t in zip(document, token, strict=True)] for _ in range(layers)]
    return Routes(torch.tensor(rows)[..., None], document, token, 4)


def some_expert(generator):
    return int(torch.randint(4, (), generator=generator))


LABELS = ["even" if d % 2 == 0 else "odd" for d in range(N)]


def test_experts_that_follow_the_domain_tell_all_of_it():
    found = specialisation(routed(lambda d, t, g: d % 2), LABELS)
    assert found.domains == ("even", "odd")
    assert torch.allclose(found.information, torch.ones(2, dtype=torch.float64), atol=1e-9)
    assert found.usage[0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert found.specialists()[1][:2] == ["even", "odd"]
    assert (found.p_value <= 1 / 201 + 1e-9).all()


def test_experts_by_chance_are_within_the_null():
    found = specialisation(routed(lambda d, t, g: some_expert(g)), LABELS, seed=3)
    assert (found.information < found.null.quantile(0.99, dim=0)).all() and (found.p_value > 0.01).all()


def test_documents_of_one_expert_each_are_no_evidence_by_themselves():
    """All tokens of a document share an expert drawn at random: permuting tokens would call this significant."""
    experts = torch.randint(4, (N,), generator=torch.Generator().manual_seed(5)).tolist()
    found = specialisation(routed(lambda d, t, g: experts[d]), LABELS)
    assert (found.information > 0.01).all() and (found.p_value > 0.01).all()


def test_what_tokens_explain_is_not_left_once_tokens_are_given():
    """Experts follow the token, and odd documents have only token 0: domains differ, but not beyond their words."""
    plain = routed(lambda d, t, g: 0)
    token = torch.where(plain.document % 2 == 1, 0, plain.token)
    routes = Routes((token % 4)[None, :, None], plain.document, token, 4)
    assert specialisation(routes, LABELS).p_value.item() < 0.01
    given = specialisation(routes, LABELS, given_token=True)
    assert abs(given.information.item()) < 1e-9 and given.p_value.item() == 1


def test_information_is_the_textbook_s():
    routes = routed(lambda d, t, g: (d % 2 + some_expert(g) // 2) % 4)
    pairs = Counter((LABELS[int(d)], int(e)) for d, e in zip(routes.document, routes.experts[0, :, 0], strict=True))
    total = sum(pairs.values())
    sides = [Counter(), Counter()]
    for (domain, expert), count in pairs.items():
        sides[0][domain] += count
        sides[1][expert] += count
    bits = sum(c / total * math.log2(c * total / (sides[0][d] * sides[1][e])) for (d, e), c in pairs.items())
    assert specialisation(routes, LABELS).information[0].item() == pytest.approx(bits)


def test_one_domain_is_nothing_to_compare():
    with pytest.raises(ValueError, match=r"1 domains \(even\)"):
        specialisation(routed(lambda d, t, g: 0), ["even"] * N)


def test_labels_come_from_kind_and_roles():
    found = {name: {label(d, name) for d in sample(name, 60, seed=0)} for name in PARTITIONS}
    assert found["code"] == {"code:infix", "code:prefix"} and found["language"] == {"english", "spanish"}
    assert len(found["genre"]) == 6 and all(name.startswith("genre:") for name in found["genre"])
    assert found["kind"] == set(grammar.SHARES)
    with pytest.raises(ValueError, match="'genre' divides genre; this document is a code"):
        label(sample("code", 1, seed=0)[0], "genre")
