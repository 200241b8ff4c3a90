"""The table of methods: its shape, its thresholds on two programs, what it leaves out, what softening changes."""

import pytest

from patchclamp.circuits.bench import METHODS, PROGRAMS, carries, known, means, run
from patchclamp.circuits.graph import Graph
from patchclamp.sites import Site

QUICK = ("exact", "eap-ig", "eap")


def test_every_row_is_a_method_on_a_program_with_random_among_them():
    rows = run(["compiled:previous-token", "compiled:induction"], QUICK, prompts=8)
    assert [set(row) for row in rows] == [{"method", "program", "auroc"}] * 8
    found = means(rows)
    assert found["exact"] >= 0.98 and found["eap-ig"] >= 0.9
    assert all(found[name] > found["random"] + 0.3 for name in QUICK)
    assert abs(found["random"] - 0.5) < 0.15
    with pytest.raises(ValueError, match="eap-gi"):
        run(["compiled:induction"], ["eap-gi"])


def test_softened_programs_still_answer():
    for name in ("compiled:induction", "compiled:sort"):
        case = known(name, prompts=32)
        answers = case.task.at_answer(case.model.run(case.task.clean).logits).argmax(-1)
        assert bool((answers == case.task.answers[:, 0]).all())


def test_what_is_left_out_carries_nothing():
    case = known("compiled:histogram")
    edges = Graph.of(case.model).edges
    left = {edge for edge, tested in zip(edges, case.tested.tolist(), strict=True) if not tested}
    silent = {edge for edge in left & case.edges if edge[0].kind != "pos_embed"}
    assert silent == {(Site("embed"), Site("v", 0, 0))}  # whether the key is the first token, which is always the same
    assert all(edge[0].kind == "pos_embed" for edge in left - silent)
    assert carries(case.model, case.task).shape == (len(edges),)


@pytest.mark.slow
def test_the_whole_table():
    found = means(run())
    assert len(PROGRAMS) >= 16
    assert found["exact"] >= 0.98 and found["eap-ig"] >= 0.9
    assert all(found[name] >= found["random"] + 0.2 for name in METHODS)
