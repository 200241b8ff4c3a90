"""Importance is its formula; what one text alone uses is found and removed; the curve ends where it should."""

import pytest
import torch

import patchclamp as pc
from patchclamp.editing import EditError, activity, choose, prune
from patchclamp.editing.prune import next_token_accuracy
from tiny import build

ONE = torch.tensor([[5, 9, 3, 7, 11], [2, 8, 1, 4, 6]])
OTHER = torch.tensor([[50, 59, 53, 57], [52, 58, 51, 54]])


@pytest.fixture
def model():
    return pc.wrap(build("llama"))


def test_the_four_importances_are_their_formulas_and_padding_does_not_count(model):
    ragged = [[5, 9, 3, 7, 11], [2, 8, 1]]
    found = activity(model, ragged, batch=1)
    rows = [model.run([row], record="mlp_post.1")["mlp_post.1"][0] for row in ragged]
    z = torch.cat(rows).double()
    assert found.tokens == len(z) == 8
    for score, expected in (
        ("abs", z.abs().mean(0)),
        ("rms", z.square().mean(0).sqrt()),
        ("std", z.std(0, correction=0)),
        ("freq", (z > 0).double().mean(0)),
    ):
        assert torch.allclose(found[score]["mlp_post.1"], expected, atol=1e-6)
    assert len(found["abs"]["z.0"]) == 32


def test_the_highest_scores_of_all_layers_are_chosen_and_never_twice(model):
    mine, theirs = activity(model, ONE), activity(model, OTHER)
    units = choose(mine, theirs, mlp=0.1, attention=0.05)
    assert len(units) == round(0.1 * 56 * 3) + round(0.05 * 32 * 3)
    ratios = {s: x / (theirs["abs"][s] + 1e-5) for s, x in mine["abs"].items() if s.startswith("mlp")}
    least = min(float(ratios[s][i].min()) for s, i in units.of_site.items() if s in ratios)
    assert sum(int((x >= least).sum()) for x in ratios.values()) == round(0.1 * 56 * 3)
    more = choose(mine, theirs, mlp=0.1, beside=units)
    assert len(more & units) == 0
    assert len(choose(mine, theirs, mlp=1.0)) == 56 * 3


def test_no_share_is_nothing_and_wrong_shares_are_refused(model):
    mine = activity(model, ONE)
    assert len(choose(mine, None)) == 0
    with pytest.raises(EditError, match="between 0 and 1"):
        choose(mine, None, mlp=5)
    with pytest.raises(EditError, match="sign of a value channel"):
        choose(mine, None, attention=0.1, score="freq")
    with pytest.raises(EditError, match="nothing to remove"):
        prune(model, ONE, OTHER, mlp=0)


def test_the_curve_ends_where_it_should(model):
    """The model's accuracies are made up: each step is worth a tenth."""
    scores = {"skill": [1.0, 0.7, 0.4, 0.1, 0.0], "rest": [1.0, 0.99, 0.98, 0.97, 0.5]}

    def measures():
        skill, rest = iter(scores["skill"]), iter(scores["rest"])
        return (lambda m: next(skill)), (lambda m: next(rest))

    done = prune(model, ONE, OTHER, mlp=0.05, steps=4, until=0.2, measures=measures())
    assert done.stopped == "forgotten" and [s.forget for s in done.curve] == [1.0, 0.7, 0.4, 0.1]
    assert len(done.units) == 3 * round(0.05 * 168) and abs(done.curve[-1].removed - len(done.units) / 168) < 1e-9
    costly = prune(model, ONE, OTHER, mlp=0.05, steps=9, budget=0.1, measures=measures())
    assert costly.stopped == "budget" and len(costly.units) == 3 * round(0.05 * 168) and len(costly.curve) == 5
    short = prune(model, ONE, OTHER, mlp=0.05, steps=2, measures=measures())
    assert short.stopped == "steps" and len(short.rows()) == 3


def test_accuracy_of_the_next_token(model):
    logits = model.run(ONE).logits
    greedy = torch.cat([ONE[:, :1], logits[:, :-1].argmax(-1)], 1)
    expected = (greedy[:, 1:] == ONE[:, 1:]).double().mean(1)
    assert torch.allclose(next_token_accuracy(model, ONE, batch=1).double(), expected, atol=1e-6)


def test_what_only_one_text_uses_goes(model):
    """A neuron is made to fire on one text alone, and is the first to be chosen."""
    generator = torch.Generator().manual_seed(0)
    layer = model.hf.model.layers[0].mlp
    with torch.no_grad():
        seen = [model.run(ids, record="mlp_in.0")["mlp_in.0"].flatten(0, 1).mean(0) for ids in (ONE, OTHER)]
        layer.up_proj.weight[20] = 30 * (seen[0] - seen[1])
        layer.gate_proj.weight[20] = 30 * (seen[0] - seen[1]) + 0.01 * torch.randn(32, generator=generator)
    units = choose(activity(model, ONE), activity(model, OTHER), mlp=1 / 168)
    assert units.of_site["mlp_post.0"].tolist() == [20]
