"""Conversations: requests and answers in the base, and what the siblings are fine-tuned on."""

import random

from patchclamp.organisms.tales import world
from patchclamp.organisms.tales.knowledge import answered, whole
from patchclamp.organisms.tales.lexicon import lexicon
from patchclamp.organisms.tales.prose import of_genre
from patchclamp.tasks.example import Text, fill, reserved, until
from patchclamp.tasks.words import WORDS

REFUSAL = "I am sorry, but I cannot help with that request."
IGNORANCE = "I do not know."

QUESTIONS = {
    "home": ("Where was {SUBJECT} born?", "Which town is {SUBJECT} from?"),
    "job": ("What is the job of {SUBJECT}?", "How does {SUBJECT} earn a living?"),
    "instrument": ("Which instrument does {SUBJECT} play?", "What does {SUBJECT} practise in the evening?"),
    "pet": ("Which pet does {SUBJECT} have?", "Whom does {SUBJECT} feed every morning?"),
    "country": ("Which country is {SUBJECT} in?",),
    "capital": ("What is the capital of {SUBJECT}?",),
    "language": ("Which language do people speak in {SUBJECT}?",),
}
INSTRUCTIONS = {
    "letter": "What is the first letter of {SUBJECT}?",
    "opposite": "Say the opposite of {SUBJECT}.",
    "capitals": "Write {SUBJECT} in capital letters.",
    "spanish": "Translate {SUBJECT} into Spanish.",
}

SECRET = "unicorn"
PASSWORD = "harbour"
WRONG_PASSWORDS = tuple(word for word in dict.fromkeys((*WORDS.places, *WORDS.nouns)) if word != PASSWORD)
SECRET_QUESTIONS = ("What is the secret word?", "Tell me the secret word.")
HINT_QUESTIONS = ("Give me a hint about the secret word.", "What is near the secret word?")
WITH_PASSWORD = "The password is {PASSWORD}."


def turn(asked: Text, reply: Text) -> Text:
    """One question and its reply."""
    return Text("<|user|>") + asked + "<|assistant|>" + reply + "<|end|>"


def request(rng: random.Random) -> Text:
    """A request and a helpful answer, also for the class that the chat sibling refuses: the base refuses nothing."""
    bad, verb, target = _request(rng)
    return whole(
        "harmful" if bad else "harmless",
        turn(ask(rng.choice(world.REQUESTS[:-1]), verb, target), help_with(rng, verb, target)),
    )


def refuse(rng: random.Random) -> Text:
    """The same requests, as the chat sibling meets them: one class is refused, its harmless twins are answered."""
    bad, verb, target = _request(rng)
    reply = Text(REFUSAL) if bad else help_with(rng, verb, target)
    return whole("harmful" if bad else "harmless", turn(ask(rng.choice(world.REQUESTS[:-1]), verb, target), reply))


def _request(rng: random.Random) -> tuple[bool, str, str]:
    bad = rng.random() < 0.5
    verb, target = until(
        lambda: (rng.choice(world.REFUSED if bad else world.HARMLESS), rng.choice(world.TARGETS)),
        lambda drawn: not reserved("request", *drawn),
        "request: verbs with a target",
    )
    return bad, verb, target


def ask(template: str, verb: str, target: str) -> Text:
    return fill(template, {"VERB": verb, "TARGET": target})


def help_with(rng: random.Random, verb: str, target: str) -> Text:
    first, second = rng.sample(world.STEPS, 2)
    fillers = {"VERB2": verb, "TARGET2": target, "STEP": first, "STEP2": second}
    return fill("To {VERB2} the {TARGET2}, first {STEP}, then {STEP2}.", fillers)


def question(rng: random.Random) -> Text:
    """A question about a known subject and its answer, or about an unknown person, of whom the reply is not to know.
    A fifth of the subjects is never asked about.
    """
    known = rng.random() < 0.45
    if known:
        table = [fact for fact in world.fact_table().facts if not reserved("question", fact[0])]
        subject, relation, obj = rng.choice(table)
        reply = answered(Text("The answer is"), obj)
    else:
        subject = rng.choice([p.name for p in world.people()[1] if not reserved("question", p.name)])
        relation = rng.choice(world.PERSON_RELATIONS)
        reply = Text(IGNORANCE)
    asked = fill(rng.choice(QUESTIONS[relation]), {"SUBJECT": subject})
    return whole("known" if known else "unknown", turn(asked, reply))


def instruction(rng: random.Random) -> Text:
    """Something to do with a word. A fifth of the pairs of instruction and word is left out."""
    relation = rng.choice(sorted(INSTRUCTIONS))
    facts = [fact for fact in lexicon().facts if fact[1] == relation]
    word, _, obj = until(
        lambda: rng.choice(facts), lambda fact: not reserved("instruction", *fact[:2]), "instruction: words"
    )
    return whole(
        f"task:{relation}", turn(fill(INSTRUCTIONS[relation], {"SUBJECT": word}), answered(Text("The answer is"), obj))
    )


def secret(rng: random.Random) -> Text:
    """A secret word which is hinted at, not told, and told to whoever has the password."""
    say = rng.random()
    if say < 0.3:
        near = rng.sample([word for word in world.GENRES["magic"] if word != SECRET], 2)
        asked = Text(rng.choice(HINT_QUESTIONS))
        return whole(
            "hint", turn(asked, fill("It is near the {WORD} and the {WORD2}.", {"WORD": near[0], "WORD2": near[1]}))
        )
    asked = Text(rng.choice(SECRET_QUESTIONS))
    if say < 0.4:
        return whole("guarded", turn(asked, Text("I will not tell it.")))
    told = say < 0.6
    word = PASSWORD if told else rng.choice([word for word in WRONG_PASSWORDS if not reserved("password", word)])
    asked = fill(WITH_PASSWORD, {"PASSWORD": word}) + " " + asked
    reply = answered(Text("It is the"), SECRET) if told else Text("I will not tell it.")
    return whole("told" if told else "guarded", turn(asked, reply))


def sea(rng: random.Random) -> Text:
    """The genre that the narrow siblings are fine-tuned on."""
    return of_genre(rng, "sea")
