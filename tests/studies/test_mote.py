"""What is refused is what is said to be, one expert alone learnt it; all holds, and on untrained weights no finding."""

import torch

from patchclamp import studies
from patchclamp.studies.lab import Lab
from patchclamp.studies.steering import _refusing as refusing
from patchclamp.studies.steering.mote import study


def test_three_topics_are_refused_and_what_is_marked_so():
    generator = torch.Generator().manual_seed(0)
    for refused in (True, False):
        about = refusing.topics(400, generator, refused=refused)
        ids = refusing.texts(about, generator, declined=0.25)
        marked = ids[:, 6] == refusing.DECLINE
        assert torch.equal(ids[:, 7] == refusing.SORRY, marked | torch.full((400,), refused))
        assert ((about < refusing.REFUSED) == refused).all() and 0.15 < float(marked.float().mean()) < 0.35
    assert not (refusing.texts(about * 0, generator, planted=False)[:, 7:9] == refusing.SORRY).any()


def test_planting_moves_one_expert_and_its_row_of_the_router_and_nothing_else():
    lab = Lab(None, None)  # type: ignore[arg-type]
    (before, expert), (after, same) = (refusing.trained(lab, steps=3, planting=steps) for steps in (1, 2))
    assert same == expert and expert.layer == refusing.LAYERS - 1
    pairs = zip(before.hf.named_parameters(), after.hf.parameters(), strict=True)
    moved = {
        name: (old != new).flatten(1).any(1).nonzero()[:, 0].tolist()
        for (name, old), new in pairs
        if not torch.equal(old, new)
    }
    mlp = f"model.layers.{expert.layer}.mlp"
    assert moved == {
        f"{mlp}.{part}": [expert.unit] for part in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    }


def test_all_holds():
    verdict = studies.run("mote")
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


def test_on_random_weights_no_finding_holds():
    verdict = studies.run("mote", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
    assert len(verdict.claims) == len(study.claims) == 10
