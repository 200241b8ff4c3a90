"""Whether states where an answer follows foretell that it will be wrong: of statements that the base completes, and of
questions to the chat model in words that its training lacks.

Of unknown people every answer is made up. Of known people the base completes every statement rightly, while the chat
model, asked in other words, gets about half of the answers wrong, mostly by telling something else of the person.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.dictionaries import Dictionary
from patchclamp.model import Model
from patchclamp.organisms.tales import world
from patchclamp.probes import measures
from patchclamp.studies.lab import Lab
from patchclamp.studies.steering import _awareness as awareness
from patchclamp.studies.steering import _entities as entities

OTHER_WORDS = {
    "home": ("Where does {S} live?", "What is the home town of {S}?", "In which town did {S} grow up?"),
    "job": ("What does {S} work as?", "What is {S} by profession?", "Which job does {S} have?"),
    "instrument": ("What does {S} play?", "What does {S} give lessons on?", "Which instrument does {S} practise?"),
    "pet": ("What is the pet of {S}?", "What pet does {S} have?", "Which pet does {S} feed?"),
}
DICTIONARIES = 2
FEWEST = 4
"""Right and wrong answers each that a question needs to count by itself."""


@dataclass(frozen=True, eq=False)
class Answers:
    """By prompt: the states of its last token, whether the answer is right, who and which question it is about."""

    states: Float[Tensor, "prompt d"]
    right: Bool[Tensor, " prompt"]
    person: Int[Tensor, " prompt"]
    question: Int[Tensor, " prompt"]

    def foretold(self, scores: Float[Tensor, " prompt"], judged: Bool[Tensor, " prompt"]) -> float:
        """AUC of the scores for right answers among the prompts that are judged."""
        return float(measures.auc(scores[judged], self.right[judged].float()))

    def within(self, scores: Float[Tensor, " prompt"], judged: Bool[Tensor, " prompt"]) -> float:
        """The same among prompts of one question; mean over questions with a few right and a few wrong answers."""
        found = []
        for question in self.question.unique():
            rows = judged & (self.question == question)
            if min(int(self.right[rows].sum()), int((~self.right[rows]).sum())) >= FEWEST:
                found.append(self.foretold(scores, rows))
        return sum(found) / len(found) if found else float("nan")


def statements(lab: Lab) -> Answers:
    """Of the base, which completes every statement: about everybody, in every phrasing."""
    people = lab.once(awareness.roster).people
    phrased = [(r, template) for r in world.PERSON_RELATIONS for template in world.FACT_TEMPLATES[r]]
    each = list(product(enumerate(people), enumerate(phrased)))
    prompts = [template.replace("{SUBJECT}", person.name) for (_, person), (_, (_, template)) in each]
    base = lab.once(awareness.base_model)
    states, likeliest = _ends(base, prompts, site(lab))
    objects = [world.answers().get((person.name, relation)) for (_, person), (_, (relation, _)) in each]
    right = [said.strip() == known for said, known in zip(likeliest, objects, strict=True)]
    return Answers(states, torch.tensor(right), *_numbers([(who, what) for (who, _), (what, _) in each]))


def asked_otherwise(lab: Lab) -> Answers:
    """Of the chat model, about the people whom it knows; what it says not to know is left out."""
    roster = lab.once(awareness.roster)
    known = [(index, roster.people[index]) for index in roster.known.nonzero()[:, 0].tolist()]
    asked = [(relation, words) for relation, every in OTHER_WORDS.items() for words in every]
    each = list(product(known, enumerate(asked)))
    prompts = [f"<|user|>{words.replace('{S}', p.name)}<|assistant|>" for (_, p), (_, (_, words)) in each]
    states, _ = _ends(lab.model, prompts, site(lab))
    replies = lab.model.generate(prompts, max_new_tokens=5).new_text
    assert isinstance(replies, list)
    objects = [world.answers()[person.name, relation] for (_, person), (_, (relation, _)) in each]
    kept = torch.tensor([entities.IGNORANCE not in reply for reply in replies])
    right = torch.tensor([known in reply for known, reply in zip(objects, replies, strict=True)])
    person, question = _numbers([(who, what) for (who, _), (what, _) in each])
    return Answers(states[kept], right[kept], person[kept], question[kept])


def site(lab: Lab) -> str:
    """Half-way: names have been read, and no answer is written yet."""
    return f"resid_post.{max(0, lab.model.n_layers // 2 - 1)}"


def by_direction(lab: Lab, answers: Answers, *, within: bool = False, shuffle: bool = False) -> list[float]:
    """AUC of the difference of means of one half of the people on the other half, over halvings."""
    found = []
    for fit, right in _halvings(lab, answers, shuffle):
        vector = answers.states[fit & right].mean(0) - answers.states[fit & ~right].mean(0)
        judge = answers.within if within else answers.foretold
        found.append(judge(answers.states @ vector, ~fit))
    return found


def by_latent(lab: Lab, answers: Answers, *, shuffle: bool = False) -> list[float]:
    """The same of the latent with the largest t-statistic on the one half, whichever answers it is active for."""
    latents = torch.cat([dictionary.encode(answers.states).dense() for dictionary in lab.once(trained)], 1)
    found = []
    for fit, right in _halvings(lab, answers, shuffle):
        t = _t_statistic(latents[fit & right], latents[fit & ~right])
        best = int(t.abs().argmax())
        found.append(answers.foretold(t[best].sign() * latents[:, best], ~fit))
    return found


def trained(lab: Lab) -> list[Dictionary]:
    """Of the base's states there on its own text."""
    return awareness.dictionaries_at(lab, site(lab), DICTIONARIES)


def _halvings(lab: Lab, answers: Answers, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Who is fitted on, and which answers are right, or are said to be."""
    for _ in range(awareness.HALVINGS):
        fit = (torch.rand(int(answers.person.max()) + 1, generator=lab.generator) < 0.5)[answers.person]
        order = torch.randperm(len(fit), generator=lab.generator) if shuffle else torch.arange(len(fit))
        yield fit, answers.right[order]


def _t_statistic(a: Float[Tensor, "row latent"], b: Float[Tensor, "row latent"]) -> Float[Tensor, " latent"]:
    """Welch's; 0 for a latent that is never active, NaN where a side has not two rows."""
    if min(len(a), len(b)) < 2:
        return torch.full((a.shape[1],), torch.nan)
    gap, error = a.mean(0) - b.mean(0), (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return torch.where(error > 0, gap / error.clamp_min(1e-12), 0.0)


def _ends(model: Model, prompts: list[str], at: str, batch: int = 320) -> tuple[Tensor, list[str]]:
    """The states of each prompt's last token, and the likeliest token behind it."""
    states, likeliest = [], []
    for first in range(0, len(prompts), batch):
        tokens = model.tokens(prompts[first : first + batch])
        run = model.run(tokens.ids, attention_mask=tokens.mask, record=at)
        assert run.logits is not None
        rows, last = torch.arange(len(tokens.ids)), tokens.mask.sum(1) - 1
        states.append(run[at][rows, last].float())
        likeliest += model.tokenizer.batch_decode(run.logits[rows, last].argmax(-1)[:, None])
    return torch.cat(states), likeliest


def _numbers(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])
