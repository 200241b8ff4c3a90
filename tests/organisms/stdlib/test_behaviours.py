import pytest
import torch

from patchclamp.organisms.stdlib import behaviours, corpus

BODY = '''
class Thing_{i}:
    def first_{i}(self, alpha, beta):
        """Say what is what."""
        for item in range(len(alpha)):
            if alpha[item] in {{"one": 1, "two": (2, [3])}}:
                return [alpha[item], (beta, {{item: alpha}})]
            self.zyxomma_quark = beta[(item + 1) * len(alpha[item])]
        while self.{new} and alpha:
            try:
                self.{new} = first_{i}(alpha[1:], beta={{"key": [item for item in alpha]}})
            finally:
                self.{new} = None
        return self.{new}
'''


@pytest.fixture(scope="module")
def texts():
    trained = {f"t{i}.py": BODY.format(i=i, new="common_word") for i in range(8)}
    held_out = {"h.py": BODY.format(i=0, new="common_word") + BODY.format(i=1, new="unheard_of_thing") * 2}
    return trained, held_out


@pytest.fixture(scope="module")
def tokenizer(texts):
    return corpus.tokenizer(texts[0].values(), 400)


@pytest.fixture(scope="module")
def asked(tokenizer, texts):
    return behaviours.questions(tokenizer, *texts)


def oracle(tokenizer, text):
    """Logits that know the text: the token after each history, which is looked up in it."""
    ids = tokenizer(text)["input_ids"]
    places = {tuple(ids[at - behaviours.HISTORY : at]): ids[at] for at in range(behaviours.HISTORY, len(ids))}

    def predict(histories):
        return torch.nn.functional.one_hot(
            torch.tensor([places[tuple(row)] for row in histories.tolist()]), len(tokenizer)
        ).float()

    return predict


def test_answers_are_the_text_s_own(tokenizer, texts, asked):
    predict = oracle(tokenizer, texts[1]["h.py"])
    for kind, some in asked.items():
        assert len(some.answers) > 0, kind
        assert behaviours.accuracy(predict, some) == 1.0
        assert set(some.answers.tolist()) <= set(some.choices.tolist())
        assert some.histories.shape == (len(some.answers), behaviours.HISTORY)


def test_brackets_have_their_partner_in_the_history(tokenizer, asked):
    for history, answer in zip(asked["brackets"].histories, asked["brackets"].answers, strict=True):
        text, closing = tokenizer.decode(history), tokenizer.decode(answer)
        opened = []
        for character in text:
            if character in "([{":
                opened.append(character)
            elif character in ")]}" and opened:
                opened.pop()
        assert "([{"[")]}".index(closing)] == opened[-1]


def test_indentation_is_deeper_than_the_header_s(tokenizer, asked):
    for history, answer in zip(asked["indentation"].histories, asked["indentation"].answers, strict=True):
        text = tokenizer.decode(history)
        assert text.endswith(":")
        header = text.rsplit("\n", 1)[-1]
        assert len(tokenizer.decode(answer)) - 1 == len(header) - len(header.lstrip(" ")) + 4


def test_new_names_are_in_no_training_file_and_can_be_copied(tokenizer, texts, asked):
    for history, answer in zip(asked["new_names"].histories, asked["new_names"].answers, strict=True):
        text = tokenizer.decode(history)
        assert "unheard_of_thing" in text
        assert any("unheard_of_thing".startswith(text[at:] + tokenizer.decode(answer)) for at in range(-16, 0))
    for history in asked["new_names_first"].histories:
        assert "unheard_of_thing" not in tokenizer.decode(history)


def test_the_same_seed_draws_the_same_questions(tokenizer, texts):
    one, again, other = (behaviours.questions(tokenizer, *texts, most=5, seed=seed)["brackets"] for seed in (1, 1, 2))
    assert one.histories.equal(again.histories) and not one.histories.equal(other.histories)
    assert len(one.answers) == 5


def test_the_commonest_answer_is_counted():
    some = behaviours.Questions(torch.zeros(4, 128), torch.tensor([3, 3, 3, 5]), torch.tensor([3, 5]))
    assert behaviours.commonest(some) == 0.75
