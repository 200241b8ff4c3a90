import random
import re

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from patchclamp import tasks
from patchclamp.tasks.example import Span, Text, fill, reserved
from patchclamp.tasks.names import IOI_TEMPLATES, ioi_example
from patchclamp.tasks.numbers import CENTURIES
from patchclamp.tasks.words import WORDS

TEMPLATED = [name for name in tasks.names() if name != "facts"]


@pytest.mark.parametrize("name", TEMPLATED)
def test_same_seed_same_prompts_and_other_seed_other_prompts(tokenizer, name):
    make = tasks.by_name(name)
    assert make(tokenizer, n=8, seed=1).clean_text == make(tokenizer, n=8, seed=1).clean_text
    assert make(tokenizer, n=8, seed=1).clean_text != make(tokenizer, n=8, seed=2).clean_text


@pytest.mark.parametrize("name", TEMPLATED)
def test_labels_point_at_their_words(tokenizer, name):
    task = tasks.by_name(name)(tokenizer, n=6)
    assert torch.equal(task.labels["END"], task.positions)
    for role, where in task.labels.items():
        assert (where >= 0).all(), role
        assert (where < task.clean.shape[1]).all(), role


@pytest.mark.parametrize("name", TEMPLATED)
def test_global_generator_is_untouched(tokenizer, name):
    state = random.getstate()
    tasks.by_name(name)(tokenizer, n=2)
    assert random.getstate() == state


def decoded(tokenizer, task, role, row=0):
    return tokenizer.decode([int(task.clean[row, task.labels[role][row]])])


def test_ioi_labels_and_answers(tokenizer):
    task = tasks.ioi(tokenizer, n=20)
    for row, text in enumerate(task.clean_text):
        io, s1, s2 = (decoded(tokenizer, task, role, row) for role in ("IO", "S1", "S2"))
        assert s1 == s2 != io
        assert tokenizer.decode(task.answers[row]) == io
        assert tokenizer.decode(task.wrong[row]) == s1
        assert text.count(s1.strip()) == 2
        assert text.count(io.strip()) == 1
        assert reserved("ioi", *sorted((io.strip(), s1.strip())))
    differs = (task.clean != task.corrupt).nonzero()
    assert differs[:, 1].tolist() == task.labels["S2"].tolist()


def test_ioi_has_both_orders(tokenizer):
    task = tasks.ioi(tokenizer, n=40)
    first = task.labels["IO"] < task.labels["S1"]
    assert 8 < int(first.sum()) < 32


def test_ioi_abc_corruption_repeats_no_name(tokenizer):
    task = tasks.ioi(tokenizer, n=20, corruption="abc")
    for row in range(len(task)):
        s2 = int(task.corrupt[row, task.labels["S2"][row]])
        assert s2 not in (int(task.answers[row, 0]), int(task.wrong[row, 0]))


def test_ioi_refuses_unknown_options(tokenizer):
    with pytest.raises(ValueError, match="'swap' or 'abc'"):
        tasks.ioi(tokenizer, corruption="random")
    with pytest.raises(ValueError, match="no template 99"):
        tasks.ioi(tokenizer, templates=(99,))


def test_every_ioi_template_can_be_asked_for(tokenizer):
    for index in range(len(IOI_TEMPLATES)):
        assert len(tasks.ioi(tokenizer, n=3, templates=(index,))) == 3


def test_greater_than_splits_the_years_rightly(tokenizer):
    task = tasks.greater_than(tokenizer, n=20)
    for row, text in enumerate(task.clean_text):
        century, year = map(int, re.search(r"year (\d\d)(\d\d) to", text).groups())
        assert century in CENTURIES
        right = [int(tokenizer.decode([t])) for t in task.answers[row].tolist() if t != -1]
        wrong = [int(tokenizer.decode([t])) for t in task.wrong[row].tolist() if t != -1]
        assert right == list(range(year + 1, 100))
        assert wrong == list(range(year + 1))
        assert f"year {century}01 to" in task.corrupt_text[row]


def test_induction_repeats_and_its_lag_varies(tokenizer):
    task = tasks.induction(tokenizer, n=30)
    for row, text in enumerate(task.clean_text):
        words = text.split()
        earlier = words[:-1].index(words[-1])
        assert words[earlier + 1] == tokenizer.decode(task.answers[row]).strip()
        bad = task.corrupt_text[row].split()
        assert bad[bad[:-1].index(bad[-1]) + 1] == tokenizer.decode(task.wrong[row]).strip()
        assert sorted(words) == sorted(bad)
        assert decoded(tokenizer, task, "A1", row).strip() == words[-1]
    assert len(set((task.labels["A2"] - task.labels["A1"]).tolist())) > 3


def test_gendered_pronoun_follows_the_name(tokenizer):
    task = tasks.gendered_pronoun(tokenizer, n=20)
    for row in range(len(task)):
        name = decoded(tokenizer, task, "NAME", row).strip()
        assert tokenizer.decode(task.answers[row]) == (" he" if name in WORDS.men else " she")


def test_colored_objects_answer_is_the_colour_of_the_query(tokenizer):
    task = tasks.colored_objects(tokenizer, n=20)
    for row, (good, bad) in enumerate(zip(task.clean_text, task.corrupt_text, strict=True)):
        color = tokenizer.decode(task.answers[row]).strip()
        query = re.search(r"color is the (\w+)\?", good)[1]
        assert f"a {color} {query}" in good
        other = re.search(r"color is the (\w+)\?", bad)[1]
        assert f"a {tokenizer.decode(task.wrong[row, :1]).strip()} {other}" in good
        assert task.wrong.shape[1] == 2


def test_docstring_answer_is_the_third_argument(tokenizer):
    task = tasks.docstring(tokenizer, n=20)
    for row, (good, bad) in enumerate(zip(task.clean_text, task.corrupt_text, strict=True)):
        arguments = re.search(r"self, (\w+), (\w+), (\w+), (\w+)\)", good).groups()
        assert tokenizer.decode(task.answers[row]).strip() == arguments[2]
        assert re.search(r"self, (\w+), (\w+), (\w+), (\w+)\)", bad).groups()[2] == arguments[3]


def test_facts_needs_to_know_the_facts(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="not known which facts"):
        tasks.facts(tokenizer)
    (tmp_path / "facts.json").write_text('{"facts": [1]}')
    with pytest.raises(ValueError, match="is not a facts file"):
        tasks.facts(tokenizer, path=tmp_path / "facts.json")


def test_a_tokenizer_without_the_words_is_told_how_many_remain(tokenizer):
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match=r"ioi: only 0 of 32 men are single tokens"):
        tasks.ioi(PreTrainedTokenizerFast(tokenizer_object=letters))
    with pytest.raises(ValueError, match="greater_than: only 0 of"):
        tasks.greater_than(PreTrainedTokenizerFast(tokenizer_object=letters))


def test_by_name_suggests_and_accepts_hyphens():
    assert tasks.by_name("greater-than") is tasks.greater_than
    with pytest.raises(LookupError, match="Did you mean 'induction'"):
        tasks.by_name("inducton")


def test_reserved_is_a_fifth_and_never_changes():
    pairs = [(a, b) for a in WORDS.names for b in WORDS.names if a < b]
    share = sum(reserved("ioi", *pair) for pair in pairs) / len(pairs)
    assert 0.17 < share < 0.23
    # These are promises to weights that are already trained.
    assert [reserved("ioi", *sorted(("John", name))) for name in ("Kate", "Paul", "Ruth", "Tom")] == [
        True,
        False,
        True,
        False,
    ]


def test_training_side_never_draws_a_reserved_pair():
    rng = random.Random(0)
    for _ in range(300):
        example = ioi_example(rng, WORDS, held_out=False)
        names = sorted((example.answers[0].strip(), example.wrong[0].strip()))
        assert not reserved("ioi", *names)


def test_fill_remembers_where_each_role_went():
    text = fill("{A} met {B}.", {"A": "Mary", "B": "John"}) + Text("!", (Span("end", 0, 1),))
    assert text.text == "Mary met John.!"
    assert [text.text[s.start : s.end] for s in text.spans] == ["Mary", "John", "!"]
