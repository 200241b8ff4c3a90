"""The rank-one edit sends its key to its value exactly; MEMIT reaches what was wanted; counterfactuals are so."""

import json

import pytest
import torch

import patchclamp as pc
from patchclamp.editing import EditError, Joint, Rewrite, Search, drawn, memit, read_rewrites, rome, second_moment
from patchclamp.editing.evaluate import ask
from patchclamp.editing.matrices import down_projection
from patchclamp.editing.values import Contexts, solve
from patchclamp.organisms.tales import world
from patchclamp.store.statistics import Moments, Statistics

FACTS = [
    Rewrite("anna", ("{SUBJECT} was born in",), old="paris", new="rome", paraphrases=("the city of {SUBJECT} is",)),
    Rewrite("bela", ("{SUBJECT} lives in", "{SUBJECT} was born in"), old="oslo", new="bern paris"),
]
NEUTRAL = ["carl was born in paris", "the city of dora is oslo", "carl is a city"]
TEXTS = torch.randint(0, 99, (40, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])  # stored [in, out], [out, in]; a norm after the MLP
def test_the_key_goes_to_its_value_and_others_by_their_likeness_to_it(family, tiny_model):
    model = tiny_model(family)
    moment = second_moment(model, TEXTS, 1)
    contexts = Contexts.of(model, FACTS, ["the city of paris is "])
    keys = contexts.read(model, "mlp_post.1")
    delta = solve(model, FACTS, contexts, f"module:{down_projection(model, 1).path}", Search(steps=3)).delta
    edits = rome(model, FACTS, 1, moment=moment, prefixes=["the city of paris is "], search=Search(steps=3))
    down = down_projection(model, 1)
    before = down.weight(model).double().clone()
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(len(moment), generator=generator, dtype=torch.double)
    for key, value, edit in zip(keys, delta, edits, strict=True):
        with edit.applied(model):
            change = down.weight(model).double() - before
        assert torch.allclose(change @ key, value, atol=1e-4)
        likeness = (other @ torch.linalg.solve(moment, key)) / (key @ torch.linalg.solve(moment, key))
        assert torch.allclose(change @ other, value * likeness, atol=1e-2 * float(value.norm()))


def test_the_value_makes_the_answer_likelier_and_touches_no_gradient(tiny_model):
    model = tiny_model("llama")
    contexts = Contexts.of(model, FACTS)
    found = solve(model, FACTS, contexts, "resid_post.1", Search(steps=20, learning_rate=0.3))
    assert bool((found.after > found.before).all()) and bool((found.losses[-1] < found.losses[0]).all())
    assert all(p.grad is None for p in model.hf.parameters())
    # A rewrite's delta does not depend on which others are in its batch.
    alone = solve(model, FACTS[:1], Contexts.of(model, FACTS[:1]), "resid_post.1", Search(steps=20, learning_rate=0.3))
    assert torch.allclose(alone.delta[0], found.delta[0], atol=1e-3)


def test_the_size_of_the_value_is_clamped(tiny_model):
    model = tiny_model("llama")
    contexts = Contexts.of(model, FACTS)
    held = contexts.read(model, "resid_post.1").norm(dim=1)
    found = solve(model, FACTS, contexts, "resid_post.1", Search(steps=10, learning_rate=5.0, clamp=0.5, decay=0.0))
    assert bool((found.delta.norm(dim=1) <= 0.55 * held).all())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_many_facts_over_several_layers_reach_what_was_wanted(family, tiny_model):
    """With next to no weight on the rest, the last layer closes the gap: h = z at every subject."""
    model = tiny_model(family)
    moments = {layer: second_moment(model, TEXTS, layer) for layer in (0, 1)}
    contexts, search = Contexts.of(model, FACTS), Search(steps=3)
    delta = solve(model, FACTS, contexts, "resid_post.1", search).delta
    wanted = contexts.read(model, "resid_post.1") + delta
    edit = memit(model, FACTS, [0, 1], moments=moments, weight=1e-6, search=search)
    assert len(edit.parameters) == 2
    with edit.applied(model):
        missed = contexts.read(model, "resid_post.1") - wanted
    assert float(missed.norm()) < 0.02 * float(delta.norm())
    kept = memit(model, FACTS, [0, 1], moments=moments, weight=1e6, search=search)
    with kept.applied(model):
        assert float((contexts.read(model, "resid_post.1") - wanted).norm()) > 0.9 * float(delta.norm())


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])  # stored [in, out]; a norm after the MLP
def test_values_solved_together_write_all_facts_and_pay_for_what_else_changes(family, tiny_model):
    model = tiny_model(family)
    moments = {layer: second_moment(model, TEXTS, layer) for layer in (0, 1)}
    before = {n: w.clone() for n, w in model.hf.state_dict().items()}

    def written(**settings):
        joint = Joint(steps=60, learning_rate=3.0, batch=1.0, enough=0.0, **settings)
        return memit(model, FACTS, [0, 1], moments=moments, weight=1e-3, joint=joint, neutral=NEUTRAL)

    def predicted():
        run = model.run(NEUTRAL)
        return run.logits[run.mask.bool()].double().log_softmax(-1)

    free, dear = written(kl=0.0), written(kl=1e4)
    assert all(torch.equal(before[n], w) for n, w in model.hf.state_dict().items())
    assert all(p.grad is None for p in model.hf.parameters())
    none = ask(model, [q for fact in FACTS for q in fact.questions() if q.kind == "efficacy"]).margin
    was, gained, changed = predicted(), [], []
    for edit in (free, dear):
        assert len(edit.parameters) == 2
        with edit.applied(model):
            gained.append(
                ask(model, [q for fact in FACTS for q in fact.questions() if q.kind == "efficacy"]).margin - none
            )
            changed.append(float((was.exp() * (was - predicted())).sum(-1).mean()))
    assert bool((gained[0] > 0.5).all()) and float(gained[1].mean()) < float(gained[0].mean())
    assert changed[1] < 0.1 * changed[0]
    again = written(kl=0.0)
    assert all(torch.equal(a.left, b.left) for a, b in zip(free.changes, again.changes, strict=True))
    with pytest.raises(EditError, match="give one of them"):
        memit(model, FACTS, [0], moments=moments, search=Search(), joint=Joint())
    with pytest.raises(EditError, match="need neutral"):
        memit(model, FACTS, [0], moments=moments, joint=Joint())
    with pytest.raises(EditError, match="by joint=Joint"):
        memit(model, FACTS, [0], moments=moments, neutral=NEUTRAL)


def test_the_second_moment_of_text_is_that_of_its_statistics(tiny_model):
    model = tiny_model("llama")
    rows = model.run(TEXTS, record="mlp_post.1")["mlp_post.1"].flatten(0, 1).double()
    statistics = Statistics.of(Moments.of(rows)).with_covariance(rows.T.cov(correction=0))
    expected = rows.T @ rows / len(rows)
    assert torch.allclose(second_moment(model, TEXTS, 1), expected, atol=1e-7)
    assert torch.allclose(second_moment(model, statistics, 1), expected, atol=1e-7)


def test_what_cannot_be_edited_is_refused_by_name(tiny_model):
    mixture, gemma = tiny_model("mixtral"), tiny_model("gemma2")
    with pytest.raises(EditError, match="no single MLP down-projection in layer 1"):
        rome(mixture, FACTS, 1, moment=torch.eye(56))
    with pytest.raises(EditError, match="something stands between"):
        memit(gemma, FACTS, [1], moments={1: torch.eye(56)})
    model = tiny_model("llama")
    with pytest.raises(EditError, match="second moment has no inverse"):
        second_moment(model, TEXTS[:1], 1)
    with pytest.raises(EditError, match=r"layer 1 has 56 neurons"):
        rome(model, FACTS, 1, moment=torch.eye(5), search=Search(steps=0))
    with pytest.raises(EditError, match="no second moment of layer 1"):
        memit(model, FACTS, [0, 1], moments={0: torch.eye(56)})
    with pytest.raises(EditError, match=r"has no \{SUBJECT\}"):
        Rewrite("anna", ("anna was born in",), "paris", "rome")
    with pytest.raises(EditError, match="is the old one"):
        Rewrite("anna", ("{SUBJECT} was born in",), "paris", "paris")


def test_rewrites_are_read_from_json_and_from_counterfact(tmp_path):
    own = {"subject": "anna", "prompts": ["{SUBJECT} is"], "old": "a", "new": "b", "neighbours": [["bela is", "a"]]}
    record = {
        "requested_rewrite": {
            "subject": "anna",
            "prompt": "{} lives in",
            "target_true": {"str": "oslo"},
            "target_new": {"str": "rome"},
        },
        "paraphrase_prompts": ["a city. anna is at home in"],
        "neighborhood_prompts": ["bela lives in"],
    }
    (tmp_path / "list.json").write_text(json.dumps([own, record]))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, [own, record])))
    mine, theirs = read_rewrites(tmp_path / "list.json")
    assert read_rewrites(tmp_path / "lines.jsonl") == [mine, theirs]
    assert mine == Rewrite("anna", ("{SUBJECT} is",), "a", "b", neighbours=(("bela is", "a"),))
    assert theirs.prompts == ("{SUBJECT} lives in",) and theirs.paraphrases == ("a city. {SUBJECT} is at home in",)
    assert (theirs.old, theirs.new, theirs.neighbours) == ("oslo", "rome", (("bela lives in", "oslo"),))
    for wrong, said in (
        ([{**own, "promts": []}], "record 0: no field is called promts"),
        ([own, {"subject": "x"}], "record 1"),
        ([{**own, "prompts": "{SUBJECT} is"}], "a text, not a list"),
        ([], "holds no rewrites"),
    ):
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(EditError, match=said):
            read_rewrites(tmp_path / "wrong.json")
    (tmp_path / "wrong.json").write_text("subject: anna")
    with pytest.raises(EditError, match="is not JSON"):
        read_rewrites(tmp_path / "wrong.json")


# ── facts of tales ────────────────────────────────────────────────────────────────────────────────────────────────────


def follows(subject, relation, obj):
    if relation != "home":
        return []
    country = world.answers()[obj, "country"]
    told = {
        "home country": country,
        "home language": world.answers()[country, "language"],
        "home capital": world.answers()[country, "capital"],
    }
    return [(world.TWO_HOP_TEMPLATES[r][0].replace("{SUBJECT}", subject), told[r]) for r in told]


def facts_of_tales(n, seed):
    relations = (*world.PERSON_RELATIONS, "country")
    return drawn(world.fact_table(), n, seed, relations=relations, follows=follows)


def texts_of_tales(n=150):
    return [document.text for document in pc.organisms.truth("tales").documents(n, seed=5)]


def test_counterfactuals_are_one_a_subject_and_ask_what_they_say():
    facts = facts_of_tales(60, seed=3)
    answers = world.answers()
    table = world.fact_table()
    assert len({fact.subject for fact in facts}) == 60
    for fact in facts:
        relation = next(r for r, templates in table.templates.items() if fact.prompts[0] in templates)
        assert answers[fact.subject, relation] == fact.old != fact.new
        kept = table.held_out_template(fact.subject, relation)
        assert kept is None or table.templates[relation][kept] in fact.paraphrases
        assert all(answer == fact.old and fact.subject not in prompt for prompt, answer in fact.neighbours)
        assert all(old != new for _, old, new in fact.follows)
    assert any(fact.follows for fact in facts) and facts == facts_of_tales(60, seed=3) != facts_of_tales(60, seed=4)


def test_several_counterfactuals_a_subject():
    """What is rewritten of a subject is not asked as its other facts, and its neighbours are rewritten nowhere."""
    table = world.fact_table()
    facts = drawn(table, 40, 7, relations=world.PERSON_RELATIONS, each=2)
    subjects = [fact.subject for fact in facts]
    assert subjects[::2] == subjects[1::2] and len(set(subjects)) == 20
    for first, second in zip(facts[::2], facts[1::2], strict=True):
        assert first.prompts != second.prompts and first.about == second.about and len(first.about) == 2
        asked = {prompt for prompt, _ in first.about}
        assert not asked & {t.replace("{SUBJECT}", first.subject) for f in (first, second) for t in f.prompts}
        assert not any(subject in prompt for prompt, _ in first.neighbours for subject in subjects)
    with pytest.raises(EditError, match="41 rewrites, 2 a subject"):
        drawn(table, 41, 7, each=2)
    with pytest.raises(EditError, match="the table has 0"):
        drawn(table, 10, 7, each=5)
