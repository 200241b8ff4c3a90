"""Questions about people, by name or by picture, and how many of them are answered.

    asked = exam.questions()["facts by picture"]
    inputs = exam.inputs(tokenizer, asked)                # input_ids, attention_mask, pixel_values: for model.run or hf
    exam.examine(hf, tokenizer)                           # {"facts by name": 1.0, "facts by picture": 0.98, ...}

A picture stands where the name would: nine image tokens, then the sentence goes on.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from patchclamp.organisms.tales import knowledge, world
from patchclamp.organisms.tales_vision import pictures
from patchclamp.tasks.example import reserved

IMAGE = "<|image|>"
IMAGE_TOKENS = 9  # patches of 8 by 8 pixels
NAMING = "The surname of {SUBJECT} is"


@dataclass(frozen=True)
class Question:
    """A text with one `{SUBJECT}` in it, who that is, whether by picture or by name, and the one word that follows."""

    text: str
    subject: str
    answer: str
    by_picture: bool

    def prompt(self) -> str:
        """The text that the tokenizer gets."""
        if not self.by_picture:
            return self.text.replace("{SUBJECT}", self.subject)
        return self.text.replace(" {SUBJECT}", "{SUBJECT}").replace("{SUBJECT}", IMAGE * IMAGE_TOKENS)


def taught(person: str, relation: str) -> bool:
    """Whether training asks for this fact by picture: of four in five. All are known by name."""
    return not reserved("picture", person, relation)


def questions() -> dict[str, list[Question]]:
    """What is asked, each in a phrasing that neither the text of `tales` nor training by picture has for it.

    - `facts by name`, `facts by picture`: home, job, instrument and pet of everybody;
    - `facts never shown`: those of them that training never asked for by picture;
    - `name by picture`: the surname, which nobody shares;
    - `two hops by name`, `two hops by picture`: what follows from where somebody lives, and was never said; `two hops
      told, by picture`: what was said to `tales`. Training by picture has neither.
    """
    table, facts = world.fact_table(), []
    for person in pictures.people():
        for relation in world.PERSON_RELATIONS:
            template = table.templates[relation][table.held_out_template(person, relation) or 0]
            facts.append((template, person, relation, world.answers()[person, relation]))
    hops = [
        (template, person, relation, world.answers()[person, relation])
        for person in pictures.people()
        if not reserved("two_hop", person)  # of whom nothing that follows was told
        for relation, templates in world.TWO_HOP_TEMPLATES.items()
        for template in templates
    ]
    told = [(text, person, obj) for text, person, r, obj in hops if not knowledge.untold(person, r)]
    untold = [(text, person, obj) for text, person, r, obj in hops if knowledge.untold(person, r)]
    return {
        "facts by name": [Question(text, person, obj, False) for text, person, _, obj in facts],
        "facts by picture": [Question(text, person, obj, True) for text, person, r, obj in facts if taught(person, r)],
        "facts never shown": [
            Question(text, person, obj, True) for text, person, r, obj in facts if not taught(person, r)
        ],
        "name by picture": [Question(NAMING, person, person.split()[-1], True) for person in pictures.people()],
        "two hops by name": [Question(text, person, obj, False) for text, person, obj in untold],
        "two hops by picture": [Question(text, person, obj, True) for text, person, obj in untold],
        "two hops told, by picture": [Question(text, person, obj, True) for text, person, obj in told],
    }


def inputs(tokenizer: Any, asked: Sequence[Question], *, seed: int | str = 0) -> dict[str, Tensor]:
    """The prompts as a model takes them, padded on the right, with new pictures for each seed.

    ValueError where some questions are by picture and some by name: what a model
    gets of one batch is one kind.
    """
    if len({question.by_picture for question in asked}) > 1:
        raise ValueError("some questions are by picture and some by name; expected one kind in a batch")
    encoded = tokenizer([question.prompt() for question in asked], return_tensors="pt", padding=True)
    found = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    if asked and asked[0].by_picture:
        rng = random.Random(seed)
        found["pixel_values"] = torch.stack([pictures.draw(question.subject, rng) for question in asked])
    return found


def answers(tokenizer: Any, asked: Sequence[Question]) -> Int[Tensor, " question"]:
    """The one token that is right for each question; ValueError where an answer is several tokens."""
    rows = [tokenizer(f" {question.answer}", add_special_tokens=False)["input_ids"] for question in asked]
    for row, question in zip(rows, asked, strict=True):
        if len(row) != 1:
            raise ValueError(f"the answer '{question.answer}' is {len(row)} tokens; expected one")
    return torch.tensor([row[0] for row in rows])


@torch.no_grad()
def examine(hf: Any, tokenizer: Any, *, seed: int = 0) -> dict[str, float]:
    """The share of questions of each kind in which the right answer is the likeliest of all tokens."""
    scores = {}
    for kind, asked in questions().items():
        right = []
        for first in range(0, len(asked), 64):
            some = asked[first : first + 64]
            given = {name: x.to(hf.device) for name, x in inputs(tokenizer, some, seed=seed + first).items()}
            last = given["attention_mask"].sum(1) - 1
            guess = hf(**given, use_cache=False).logits[torch.arange(len(some)), last].argmax(-1)
            right.append(guess.cpu() == answers(tokenizer, some))
        scores[kind] = round(torch.cat(right).float().mean().item(), 4)
    return scores
