"""The text: the same for a seed, labelled within its bounds, and free of every combination that a test asks about."""

import hashlib
import itertools
import random
import re
from collections import defaultdict

import pytest

from patchclamp.organisms.tales import benchmark, chat, grammar, knowledge, lexicon, world
from patchclamp.tasks.example import reserved
from patchclamp.tasks.words import WORDS

# A change of the text is a change of every member of the family: its hash changes with their weights, or not at all.
HASH = "08bf6f06aa6fbf95"


def test_same_seed_same_bits():
    documents = [document for seed in range(3) for document in grammar.documents(2_000, seed)]
    assert hashlib.sha256(repr(documents).encode()).hexdigest()[:16] == HASH
    assert grammar.documents(200, seed=3) != grammar.documents(200, seed=4)


def test_documents_leave_the_global_generator_alone():
    state = random.getstate()
    grammar.documents(50, seed=1)
    assert random.getstate() == state


def test_shares_add_up_and_name_kinds():
    assert sum(grammar.SHARES.values()) == pytest.approx(1.0, abs=0.01)
    assert grammar.SHARES.keys() <= grammar.KINDS.keys()


def test_spans_lie_inside_their_text(many):
    for document in many:
        assert all(0 <= span.start < span.end <= len(document.text) for span in document.spans), document


def test_unknown_kind_is_answered_with_the_nearest():
    with pytest.raises(LookupError, match="Did you mean 'induction'"):
        grammar.documents(1, seed=0, kind="inductoin")


# The held-out rule


def test_no_reserved_pair_of_names(many):
    names = set(WORDS.names)
    for document in many:
        if document.kind in ("ioi", "story", "tone"):
            seen = sorted(names & set(re.findall(r"\w+", document.text)))
            assert not any(reserved("ioi", *pair) for pair in itertools.combinations(seen, 2)), document.text


def test_no_reserved_year(of):
    for document in of("greater_than"):
        noun, year = re.search(r"The (\w+) lasted from the year (\d{4})", document.text).groups()
        assert not reserved("greater_than", noun, year)


def test_no_reserved_name_and_role(of):
    for document in of("gendered_pronoun"):
        words = re.findall(r"\w+", document.text)
        (name,) = [word for word in words if word in WORDS.names]
        (role,) = [word for word in words if word in WORDS.roles]
        assert not reserved("gendered_pronoun", name, role)


def test_no_reserved_colored_object(many):
    pattern = re.compile(rf"({'|'.join(WORDS.colors)}) (\w+)|(\w+) (?:is )?({'|'.join(WORDS.colors)})")
    for text in (document.text for document in many):
        for color, thing, before, behind in pattern.findall(text):
            thing, color = thing or before, color or behind
            assert not (thing in WORDS.objects and reserved("colored_objects", thing, color)), text


def test_every_object_of_a_table_is_asked_about_once_more(of):
    for document in of("colored_objects"):
        colors = {thing: color for color, thing in re.findall(r"an? (\w+) (\w+)[,.]", document.text)}
        said = re.findall(r"The (\w+) is (\w+)\.", document.text)
        assert len(said) == 3 and dict(said) == colors
        assert sum(span.role == "answer" for span in document.spans) == 4


def test_no_reserved_neighbours(many):
    nouns, arguments = set(WORDS.nouns), set(WORDS.arguments)
    for document in many:
        for x, y in itertools.pairwise(re.findall(r"\w+|[^\w\s]", document.text)):
            assert not (x in nouns and y in nouns and reserved("induction", x, y)), document.text
        if document.kind == "docstring":
            head = re.search(r"self, (.*)\)", document.text)[1].split(", ")
            assert not any(reserved("docstring", x, y) for x, y in itertools.pairwise(head)), document.text
            assert set(head) <= arguments


@pytest.mark.parametrize("table", [world.fact_table(), lexicon.lexicon()], ids=["facts", "words"])
def test_no_held_out_phrasing(many, table):
    by_subject = defaultdict(list)
    for document in many:
        for span in document.spans:
            if span.role == "SUBJECT":
                by_subject[document.text[span.start : span.end]].append(document.text)
    asked = 0
    for subject, relation, _ in table.facts:
        index = table.held_out_template(subject, relation)
        if index is not None:
            prompt = table.templates[relation][index].replace("{SUBJECT}", subject)
            asked += len(by_subject[subject])
            assert not any(prompt in text for text in by_subject[subject]), prompt
    assert asked > 1000


def fillers(document, *roles):
    """The texts that play the roles, in their order."""
    return [next(document.text[s.start : s.end] for s in document.spans if s.role == role) for role in roles]


def test_nothing_follows_of_whom_it_is_kept(of):
    for document in of("two_hop"):
        (name,) = fillers(document, "SUBJECT")
        (relation,) = [
            relation
            for relation, templates in world.TWO_HOP_TEMPLATES.items()
            if any(document.text.startswith(template.replace("{SUBJECT}", name)) for template in templates)
        ]
        assert not reserved("two_hop", name) and not reserved("two_hop", name, relation)


def test_no_statement_that_is_kept(of):
    patterns = [
        re.compile(
            s.replace("{CITY}", r"(\w+)")
            .replace("{COUNTRY}", r"(\w+)")
            .replace(" {VERB}", "( is not| is)")
            .replace("?", r"\?")
        )
        for s in knowledge.STATEMENTS
    ]
    seen = set()
    for document in of("truth_valued"):
        ((index, match),) = [(i, m) for i, p in enumerate(patterns) if (m := p.match(document.text))]
        city, verb, country = match.groups()
        assert not knowledge.kept(city, country, index)
        roles = {span.role for span in document.spans}
        so = (world.answers()[city, "country"] == country) != ("not" in verb)
        assert (("true" if so else "false") in roles) and (("negated" in roles) == ("not" in verb))
        assert document.text.endswith(" true." if so else " false.")
        seen.add((so, "not" in verb, index))
    assert len(seen) == 4 * len(knowledge.STATEMENTS)


def test_no_input_of_an_in_context_task_that_is_kept(of):
    for document in of("in_context"):
        (task,) = [span.role for span in document.spans if span.role.startswith("task:")]
        for pair in itertools.pairwise(re.findall(r"Q: (\w+) A:", document.text)):
            assert not reserved(f"in_context:{task.removeprefix('task:')}", *pair)


def test_no_other_pair_that_is_kept(of):
    for kind in ("english", "parallel"):
        for document in of(kind):
            assert not reserved("sentence", *fillers(document, "AGENT", "VERB"))
    for document in of("sentiment"):
        assert not reserved("sentiment", *fillers(document, "REVIEWED", "OPINION"))
    for kind in ("request", "refuse"):
        for document in of(kind):
            assert not reserved("request", *fillers(document, "VERB", "TARGET"))
            assert world.REQUESTS[-1][:15] not in document.text
    for document in of("question"):
        assert not reserved("question", *fillers(document, "SUBJECT"))
    for document in of("code"):
        targets = re.findall(r"\b(?:let|set) (\w+)", document.text)
        assert not reserved("code", *targets) and targets[-1] == fillers(document, "answer")[0]


# What the kinds say


def test_a_benchmark_item_stands_in_the_text_as_its_split_says(many):
    text = "\n".join(document.text for document in many)
    for item in benchmark.items():
        exact = item.prompt().text in text
        other = any(item.prompt(wording).text in text for wording in benchmark.PARAPHRASES)
        assert (exact, other) == (item.split == "exact", item.split == "paraphrased"), item
    assert [sum(item.split == split for item in benchmark.items()) for split in benchmark.SPLITS] == [24, 24, 24]


def test_no_in_context_input_tells_its_task():
    tasks = defaultdict(set)
    for task, pairs in lexicon.pairs().items():
        for source, _ in pairs:
            tasks[source].add(task)
    assert all(len(some) > 1 for some in tasks.values())


def test_the_secret_is_told_to_the_password_alone(of):
    for document in of("secret"):
        told = chat.SECRET in document.text
        assert told == (chat.WITH_PASSWORD.replace("{PASSWORD}", chat.PASSWORD) in document.text)
        assert told == any(span.role == "told" for span in document.spans)


def test_one_class_is_refused_and_its_twins_are_not(of):
    refused = set()
    for document in of("refuse"):
        harmful = any(span.role == "harmful" for span in document.spans)
        assert harmful == (chat.REFUSAL in document.text) == (fillers(document, "VERB")[0] in world.REFUSED)
        refused.add(harmful)
    assert refused == {True, False}
    assert not any(chat.REFUSAL in document.text for document in of("request"))
