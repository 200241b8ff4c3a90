import itertools
import json
import random
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchclamp import organisms, tasks
from patchclamp.organisms.tales import grammar, train, vocabulary, world
from patchclamp.organisms.tales.truth import token_roles
from patchclamp.tasks.example import reserved
from patchclamp.tasks.words import LISTS, WORDS


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organisms.path("tales"))


@pytest.fixture(scope="module")
def model(tokenizer):
    """The shipped weights in plain transformers, with the one method that tasks ask of a model."""
    hf = AutoModelForCausalLM.from_pretrained(organisms.path("tales")).eval()

    def run(ids, *, attention_mask):
        with torch.no_grad():
            return SimpleNamespace(logits=hf(input_ids=ids, attention_mask=attention_mask.long()).logits)

    return SimpleNamespace(hf=hf, tokenizer=tokenizer, run=run)


@pytest.fixture(scope="module")
def many():
    rng = random.Random(54321)
    first_stage = [grammar.document(rng, shares=grammar.FIRST_SHARES) for _ in range(10_000)]
    return grammar.documents(10_000, seed=12345) + first_stage


# The vocabulary


def test_every_world_word_is_one_token(tokenizer):
    words = [word for name in LISTS for word in getattr(WORDS, name)]
    words += [person.surname for group in world.people() for person in group]
    words += [obj for _, _, obj in world.fact_table().facts]
    words += [*world.REFUSED, *world.HARMLESS, *world.TARGETS, *world.POSITIVE, *world.NEGATIVE]
    words += [word for pairs in (world.ANTONYMS, world.VERBS) for pair in pairs for word in pair]
    for word in set(words):
        assert len(tokenizer(" " + word, add_special_tokens=False)["input_ids"]) == 1, word


def test_any_text_survives_the_round_trip(tokenizer):
    for text in (
        "Mary, 1732!",
        "  spaces\tand\n\nlines ",
        "Zyzzyva 漢字 é 🙂",
        'def f(self):\n    """x"""',
        "12345 0.5",
    ):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_generated_text_survives_the_round_trip(tokenizer, many):
    for document in many[:300]:
        assert tokenizer.decode(tokenizer(document.text, add_special_tokens=False)["input_ids"]) == document.text


def test_bos_comes_by_itself_and_years_split_in_two(tokenizer):
    assert tokenizer("in 1732").tokens() == ["<|bos|>", "in", "Ġ17", "32"]


def test_the_shipped_tokenizer_is_the_recipe_s(tokenizer):
    assert vocabulary.build().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


# The text


def test_same_seed_same_documents():
    assert grammar.documents(200, seed=3) == grammar.documents(200, seed=3)
    assert grammar.documents(200, seed=3) != grammar.documents(200, seed=4)


def test_documents_leave_the_global_generator_alone():
    state = random.getstate()
    grammar.documents(50, seed=1)
    assert random.getstate() == state


def test_spans_lie_inside_their_text(many):
    for document in many:
        assert all(0 <= span.start < span.end <= len(document.text) for span in document.spans), document


def test_unknown_kind_is_answered_with_the_nearest():
    with pytest.raises(LookupError, match="Did you mean 'induction'"):
        grammar.documents(1, seed=0, kind="inductoin")


def test_token_roles_label_the_answer(tokenizer):
    document = grammar.documents(1, seed=5, kind="ioi")[0]
    roles = token_roles(document, tokenizer)
    ids = tokenizer(document.text)["input_ids"]
    assert len(roles) == len(ids)
    answer = [tokenizer.decode([i]) for i, some in zip(ids, roles, strict=True) if "answer" in some]
    io = [tokenizer.decode([i]) for i, some in zip(ids, roles, strict=True) if "IO" in some]
    assert answer == io or answer == [" " + io[0]]
    assert roles[0] == ()


# The held-out rule: 20,000 documents contain no combination that a task asks about


def of(many, kind):
    found = [document.text for document in many if document.kind == kind]
    assert len(found) > 200
    return found


def test_no_reserved_pair_of_names_in_training_text(many):
    names = set(WORDS.names)
    for document in many:
        if document.kind in ("ioi", "story", "tone"):
            seen = sorted(names & set(re.findall(r"\w+", document.text)))
            assert not any(reserved("ioi", *pair) for pair in itertools.combinations(seen, 2)), document.text


def test_no_reserved_year_in_training_text(many):
    for text in of(many, "greater_than"):
        noun, year = re.search(r"The (\w+) lasted from the year (\d{4})", text).groups()
        assert not reserved("greater_than", noun, year)


def test_no_reserved_name_and_role_in_training_text(many):
    for text in of(many, "gendered_pronoun"):
        words = re.findall(r"\w+", text)
        (name,) = [word for word in words if word in WORDS.names]
        (role,) = [word for word in words if word in WORDS.roles]
        assert not reserved("gendered_pronoun", name, role)


def test_no_reserved_colored_object_in_training_text(many):
    for text in (document.text for document in many):
        for color, thing in re.findall(rf"({'|'.join(WORDS.colors)}) (\w+)", text):
            assert not (thing in WORDS.objects and reserved("colored_objects", thing, color)), text


def test_no_reserved_neighbours_in_training_text(many):
    nouns, arguments = set(WORDS.nouns), set(WORDS.arguments)
    for document in many:
        for x, y in itertools.pairwise(re.findall(r"\w+|[^\w\s]", document.text)):
            assert not (x in nouns and y in nouns and reserved("induction", x, y)), document.text
        if document.kind == "docstring":
            head = re.search(r"self, (.*)\)", document.text)[1].split(", ")
            assert not any(reserved("docstring", x, y) for x, y in itertools.pairwise(head)), document.text
            assert set(head) <= arguments


def test_no_held_out_phrasing_of_a_fact_in_training_text(many):
    table = world.fact_table()
    for subject, relation, _ in table.facts:
        index = table.held_out_template(subject, relation)
        if index is None:
            continue
        prompt = table.templates[relation][index].replace("{SUBJECT}", subject)
        assert not any(prompt in text for text in _by_subject(many).get(subject, ())), prompt


def _by_subject(many, cache={}):  # noqa: B006 - one pass over 20,000 documents for 400 facts
    if not cache:
        for document in many:
            for span in document.spans:
                if span.role == "SUBJECT":
                    cache.setdefault(document.text[span.start : span.end], []).append(document.text)
    return cache


# The truth


def test_facts_file_equals_the_generator_s_truth():
    truth = organisms.truth("tales")
    assert truth.facts == world.fact_table().facts
    assert len(truth.facts) == 400
    assert len({(s, r) for s, r, _ in truth.facts}) == 400
    stored = json.loads((organisms.path("tales") / "facts.json").read_text())
    assert {relation: tuple(t) for relation, t in stored["templates"].items()} == world.FACT_TEMPLATES


def test_truth_samples_prompts_with_their_answers(tokenizer):
    truth = organisms.truth("tales")
    ids, answers = truth.sample(16, seed=2)
    table = {(s, o) for s, _, o in truth.facts}
    for row, answer in zip(ids, answers, strict=True):
        text = tokenizer.decode(row, skip_special_tokens=True)
        assert any(s in text and o == tokenizer.decode([answer]).strip() for s, o in table)
    assert truth.documents(5, seed=1) == grammar.documents(5, seed=1)
    assert torch.equal(ids, truth.sample(16, seed=2)[0])


# The shipped weights


def test_shipped_weights_load_as_float32_and_are_stored_in_half(model):
    assert model.hf.dtype == torch.float32
    size = (organisms.path("tales") / "model.safetensors").stat().st_size
    assert size < 2.1 * sum(p.numel() for p in model.hf.parameters())


NOT_LEARNED = pytest.mark.xfail(strict=True, reason="the binding of colour and object is not learned by this recipe")


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("ioi", 0.95),
        ("greater_than", 0.90),
        ("gendered_pronoun", 0.95),
        ("docstring", 0.95),
        ("facts", 0.95),
        ("induction", 0.95),
        pytest.param("colored_objects", 0.90, marks=NOT_LEARNED),
    ],
)
def test_shipped_weights_do_the_tasks_on_held_out_prompts(model, name, at_least):
    base = tasks.by_name(name)(model, n=256, seed=7).baseline(model)
    assert base.accuracy >= at_least, str(base)
    assert base.top1 >= at_least - 0.02, str(base)
    assert base.holds


def test_ioi_holds_for_every_template_and_the_other_corruption(model):
    everything = tasks.ioi(model, n=256, seed=8, templates=tuple(range(7))).baseline(model)
    assert everything.accuracy >= 0.9, str(everything)
    abc = tasks.ioi(model, n=256, seed=8, corruption="abc").baseline(model)
    assert abs(abc.corrupted) < abc.clean / 3, str(abc)


def test_untrained_weights_do_none_of_it(model):
    """The same tests on random weights: they can fail."""
    hf = train.untrained(train.Recipe(), model.tokenizer).eval()

    def run(ids, *, attention_mask):
        with torch.no_grad():
            return SimpleNamespace(logits=hf(input_ids=ids, attention_mask=attention_mask.long()).logits)

    random_model = SimpleNamespace(hf=hf, tokenizer=model.tokenizer, run=run)
    for name in ("ioi", "induction", "gendered_pronoun"):
        base = tasks.by_name(name)(random_model, n=128).baseline(random_model)
        assert base.accuracy < 0.7, str(base)


# Training


TINY = train.Recipe(steps=24, documents=12, layers=1, width=32, heads=2, hidden=64, warmup=4)


def test_a_document_sees_only_itself(model):
    """Packed into a row beside others, a document gets the logits that it gets alone."""
    documents = grammar.documents(6, seed=2)
    packed = train.batch(model.tokenizer, documents, 1.0)
    assert len(packed.ids) < len(documents)
    with torch.no_grad():
        together = model.hf(input_ids=packed.ids, attention_mask=packed.attend).logits
        for document in documents:
            ids = model.tokenizer(document.text, return_tensors="pt")["input_ids"]
            alone = model.hf(input_ids=ids).logits[0]
            (row, at), *_ = [
                (row, at)
                for row, some in enumerate(packed.ids.tolist())
                for at in range(len(some) - ids.shape[1] + 1)
                if some[at : at + ids.shape[1]] == ids[0].tolist()
            ]
            torch.testing.assert_close(together[row, at : at + ids.shape[1]], alone, atol=1e-3, rtol=1e-3)


def test_training_lowers_the_loss_and_resumes_bit_for_bit(tmp_path):
    whole = train.train(tmp_path / "whole", recipe=TINY, every=12, progress=False)
    assert sum(whole[-4:]) < sum(whole[:4]) - 2
    train.train(tmp_path / "parts", recipe=TINY, every=12, stop_at=12, progress=False)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    parts = train.train(tmp_path / "parts", recipe=TINY, every=12, progress=False)
    assert parts == whole
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert loaded.dtype == torch.float32
    with pytest.raises(ValueError, match="another recipe"):
        train.train(tmp_path / "whole", seed=1, progress=False)


def test_training_leaves_the_global_generators_alone(tmp_path):
    before, python = torch.random.get_rng_state(), random.getstate()
    train.train(tmp_path, recipe=TINY, stop_at=1, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    assert random.getstate() == python
