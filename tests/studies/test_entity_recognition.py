"""On the chat model all holds, on random weights no finding does; halves, places and labels are what they are said to
be.
"""

import pytest
import torch

import patchclamp as pc
from patchclamp import studies
from patchclamp.organisms.tales import chat, world
from patchclamp.studies.lab import open_lab
from patchclamp.studies.steering import _awareness as awareness
from patchclamp.studies.steering import _entities as entities
from patchclamp.studies.steering import _errors as errors


@pytest.fixture(scope="module")
def model():
    return pc.load("organism:tales-chat")


def test_halves_are_of_equal_make_and_share_nobody():
    people = entities.roster(seed=0)
    assert len(set(people.people)) == len(people.people) == 160
    for known in (True, False):
        fit, test = people.of(known, fit=True), people.of(known, fit=False)
        assert len(fit) == len(test) == 40 and not set(fit) & set(test)
        assert set(fit) | set(test) == set(world.people()[0 if known else 1])
    assert entities.roster(seed=1).of(True, True) != people.of(True, True)
    for part in (people.fit, ~people.fit):
        assert int((part & people.men & people.known).sum()) == int((part & people.men & ~people.known).sum())


def test_those_who_choose_and_those_who_judge_are_asked_about_in_different_words():
    person = world.people()[0][0]
    (fit, where), (judge, _) = (entities.asked([person], fit) for fit in (True, False))
    assert len(fit) == len(world.PERSON_RELATIONS) and not set(fit) & set(judge)
    assert all(person.name in prompt for prompt in [*fit, *judge]) and set(where.text) == {person.name}
    assert entities.IGNORANCE in chat.IGNORANCE


def test_attention_is_that_to_the_last_token_of_the_name(model):
    people = entities.roster(seed=0).of(known=True, fit=True)[:3]
    found = entities.attention(model, people, fit=True)
    prompts, _ = entities.asked(people, fit=True)
    row = 5  # one prompt alone, its tokens looked up by their text
    tokens = model.tokenizer.convert_ids_to_tokens(model.tokenizer(prompts[row] + entities.ANSWER)["input_ids"])
    place = tokens.index("Ġ" + people[row // 4].surname)
    alone = model.run(prompts[row] + entities.ANSWER, record="pattern.2")["pattern.2"][0, :, -1, place]
    assert torch.allclose(found[row, 2], alone, atol=1e-5)


def test_shuffled_labels_keep_how_many_are_known_in_each_type_and_half():
    lab, _ = open_lab("tales-chat", model=None, seed=0, full=False, out=None)
    people, known = lab.once(awareness.roster), awareness._labels(lab, 3)
    assert not torch.equal(known, people.known)
    for men in (people.men, ~people.men):
        for half in (people.fit, ~people.fit):
            assert int(known[men & half].sum()) == int(people.known[men & half].sum())


def test_the_direction_of_the_base_turns_replies_of_the_chat_model_and_random_ones_do_not():
    lab, _ = open_lab("tales-chat", model=None, seed=2, full=False, out=None)
    people, x = lab.once(awareness.roster), lab.once(awareness.states)["embed"]
    vector = x[people.fit & people.known].mean((0, 1)) - x[people.fit & ~people.known].mean((0, 1))
    direction = pc.steering.Direction("embed", vector)
    for strength in (-2.0, 1.0):
        random = awareness.turned(lab, pc.steering.random(direction, seed=0), strength)
        assert float(awareness.turned(lab, direction, strength).mean()) > 0.9 > 0.2 > float(random.mean())


def test_words_that_training_lacks_are_no_question_of_the_chat_model():
    for relation, asked in errors.OTHER_WORDS.items():
        assert not {words.replace("{S}", "{SUBJECT}") for words in asked} & set(chat.QUESTIONS[relation])
    assert set(errors.OTHER_WORDS) == set(world.PERSON_RELATIONS)


def test_what_tells_the_question_alone_tells_nothing_within_one():
    """Two questions, the first mostly answered rightly: a score that is the question's number is right across them."""
    right = torch.tensor([True] * 15 + [False] * 5 + [True] * 5 + [False] * 15)
    question = torch.tensor([0] * 20 + [1] * 20)
    answers = errors.Answers(torch.zeros(40, 1), right, torch.arange(40), question)
    everyone = torch.ones(40, dtype=torch.bool)
    assert answers.foretold(-question.float(), everyone) == 0.75
    assert answers.within(-question.float(), everyone) == 0.5
    assert answers.within(right.float(), everyone) == 1.0


def test_an_error_that_is_planted_is_foretold_by_the_direction_and_by_the_latent():
    lab, _ = open_lab("tales-chat", model=None, seed=2, full=False, out=None)
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(200, generator=generator) < 0.5
    states = torch.randn(200, 6, generator=generator)
    states[:, 2] += 3 * right
    answers = errors.Answers(states, right, torch.arange(200), torch.zeros(200, dtype=torch.long))
    assert min(errors.by_direction(lab, answers)) > 0.9
    assert 0.35 < torch.tensor(errors.by_direction(lab, answers, shuffle=True)).mean() < 0.65
    t = errors._t_statistic(states[right], states[~right])
    assert int(t.argmax()) == 2
    assert float(errors._t_statistic(torch.zeros(4, 1), torch.zeros(4, 1))) == 0


@pytest.mark.slow
def test_all_holds():
    verdict = studies.run("entity-recognition", seed=2)
    assert [claim.claim for claim in verdict.claims if not claim.holds] == []


@pytest.mark.slow
def test_on_random_weights_no_finding_holds():
    verdict = studies.run("entity-recognition", model="random")
    assert [claim.holds for claim in verdict.claims] == [claim.kind == "identity" for claim in verdict.claims]
