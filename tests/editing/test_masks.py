"""One batch of masked passes is each edited and masked matrix's own; a learned mask finds what edits have in common."""

import pytest
import torch

from patchclamp.editing import Edit, EditError, MaskSearch, Rewrite, learn_mask, reversed_by, reversing_mask
from patchclamp.editing.masks import Batch, largest_mask, mean_change, random_mask
from patchclamp.editing.matrices import down_projection
from patchclamp.studies.editing._planted_edits import Memory

FACTS = [
    Rewrite("anna", ("{SUBJECT} was born in", "the city of {SUBJECT} is"), old="paris", new="rome"),
    Rewrite("bela", ("{SUBJECT} lives in",), old="oslo", new="bern paris"),
    Rewrite("carl", ("{SUBJECT} was born in",), old="rome oslo", new="rome bern"),
]


def rank_one(model, layer=1, seed=0, sizes=(1.0, 1.0, 1.0)):
    generator = torch.Generator().manual_seed(seed)
    down = down_projection(model, layer)
    out, inside = down.weight(model).shape
    draws = [torch.randn(n, generator=generator) for _ in sizes for n in (out, inside)]
    pairs = zip(sizes, draws[::2], draws[1::2], strict=True)
    return [Edit.low_rank({down.name: down.low_rank(size * a[:, None], b[None])}) for size, a, b in pairs]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_batch_is_each_materialised_matrix(family, tiny_model):
    model = tiny_model(family)
    edits = rank_one(model)
    batch = Batch.of(model, edits, FACTS)
    assert len(batch.owner) == 4 and batch.tokens.ids.shape[0] == 4
    mask = (torch.rand(batch.weight.shape, generator=torch.Generator().manual_seed(1)) > 0.3).float()
    with torch.no_grad():
        ours = batch.margin(model, mask)
    masked = Edit.masks({batch.down.name: (mask if batch.down.by_output else mask.T).bool()})
    for row, owner in enumerate(batch.owner.tolist()):
        with (edits[owner] + masked).applied(model):
            logits = model.run(batch.tokens).logits[row, int(batch.tokens.mask[row].sum()) - 1]
        assert abs(float(logits[batch.old[row]] - logits[batch.new[row]] - ours[row])) < 1e-4
    # The third fact's answers differ in their second token: its row ends with the first.
    assert model.tokenizer.decode(batch.tokens.ids[3][batch.tokens.mask[3]]).endswith("in rome")


def test_masks_as_controls_have_as_many_zeros(tiny_model):
    keep = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) > 0.1
    sizes = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    largest = largest_mask(keep, sizes)
    assert (~random_mask(keep)).sum() == (~largest).sum() == (~keep).sum()
    assert sizes.abs()[~largest].min() >= sizes.abs()[largest].max()
    model = tiny_model("gpt2")
    edits = rank_one(model)
    a, b = edits[0].changes[0].left, edits[0].changes[0].right
    assert torch.allclose(mean_change(edits[:1], down_projection(model, 1)), (a @ b).T.abs())


def test_a_mask_is_learned_on_a_model_which_it_leaves_alone(tiny_model):
    """The loss falls, about as much is gone as may be, and what is gone is zero in the edited parameter."""
    model = tiny_model("llama")
    down = down_projection(model, 1)
    before = down.weight(model).clone()
    # Signs are such that each edit takes: under it alone the model prefers the new answer.
    takes = [-1.0 if hit else 1.0 for hit in reversed_by(model, rank_one(model, sizes=(5.0, 5.0, 5.0)), FACTS)]
    edits, facts = rank_one(model, sizes=[5 * sign for sign in takes])[:2], FACTS[:2]
    search = MaskSearch(steps=60, learning_rate=0.1, gone=0.5)
    found = reversing_mask(model, edits, facts, neutral=["the city of oslo is"], search=search)
    assert float(found.losses[-1]) < float(found.losses[0])
    assert 0 < found.gone < 0.7
    with (edits[0] + found.edit).applied(model):
        assert torch.allclose(down.weight(model) == 0, ~found.keep)
    assert torch.equal(before, down.weight(model))


def test_other_edits_than_rank_one_edits_of_one_matrix_are_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(EditError, match="one mask is learned over one down-projection"):
        reversed_by(model, rank_one(model)[:2] + rank_one(model, layer=0)[:1], FACTS)
    with pytest.raises(EditError, match="needs rank-one edits"):
        weight = down_projection(model, 1)
        reversed_by(model, [Edit.dense({weight.name: torch.zeros(32, 56)})], FACTS[:1])
    with pytest.raises(EditError, match="give one for each"):
        reversed_by(model, rank_one(model), FACTS[:1])
    with pytest.raises(EditError, match="begin those of the other"):
        reversed_by(model, rank_one(model)[:1], [Rewrite("anna", ("{SUBJECT} is",), "rome", "rome oslo")])


def test_a_learned_mask_finds_the_planted_inputs():
    memory = Memory.draw(torch.Generator().manual_seed(0))
    keep, losses = learn_mask((48, 192), lambda mask: memory.loss(mask, 3.0, 1.0), seed=0)
    assert memory.precision(keep) >= 0.8 and memory.recall(keep) >= 0.8
    assert float(memory.reverted(keep).double().mean()) >= 0.9
    other = random_mask(keep)
    assert memory.precision(other) < 0.2 and float(memory.reverted(other).double().mean()) < 0.3
    assert len(losses) == 300 and losses[-1] < losses[0]
    again, _ = learn_mask((48, 192), lambda mask: memory.loss(mask, 3.0, 1.0), search=MaskSearch(steps=5), seed=1)
    twice, _ = learn_mask((48, 192), lambda mask: memory.loss(mask, 3.0, 1.0), search=MaskSearch(steps=5), seed=1)
    assert torch.equal(again, twice)


def test_without_steps_nothing_is_zeroed():
    keep, losses = learn_mask((4, 5), lambda mask: mask.sum(), search=MaskSearch(steps=0))
    assert bool(keep.all()) and len(losses) == 0


def test_rows_and_texts_drawn_at_each_step_are_the_seed_s(tiny_model):
    model = tiny_model("llama")
    edits = rank_one(model, sizes=(5.0, 5.0, 5.0))
    neutral = ["paris is old", "rome", "the city of oslo is in the north"]

    def learned(seed=0, **drawn):
        search = MaskSearch(steps=4, learning_rate=0.1, **drawn)
        return reversing_mask(model, edits, FACTS, neutral=neutral, search=search, seed=seed).losses

    assert torch.equal(learned(rows=1, texts=1), learned(rows=1, texts=1))
    assert len(set(learned(rows=1, texts=1).tolist())) == 4
    assert not torch.equal(learned(rows=1, texts=1), learned())
    # All rows, in whatever order, are the batch.
    torch.testing.assert_close(learned(rows=4), learned(), rtol=1e-4, atol=1e-4)


def test_an_old_answer_that_is_likeliest_of_all_is_likelier_than_the_new_one(tiny_model):
    model = tiny_model("llama")
    edits = rank_one(model, sizes=(0.1, 0.1, 0.1))
    likelier, likeliest = (reversed_by(model, edits, FACTS, likeliest=way) for way in (False, True))
    assert not bool((likeliest & ~likelier).any())
    batch = Batch.of(model, edits, FACTS)
    ends = batch.ends(model, torch.ones_like(batch.weight))
    top = (ends.argmax(1) == batch.old).tolist()
    assert likeliest.tolist() == [top[0] and top[1], top[2], top[3]]
