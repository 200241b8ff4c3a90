"""A fact to be written anew, and what is asked to see whether it was: the fact, its paraphrases, and what must stay.

    Rewrite("Anna Reed", ("{SUBJECT} was born in",), old="Lyon", new="Munich", paraphrases=("{SUBJECT} grew up in",))
    drawn(table, n=100, seed=0)           # counterfactuals from a table of facts (`patchclamp.tasks.FactTable`)
    read_rewrites("facts.json")           # fields as above, or records of CounterFact

Prompts end where the answer comes; answers are words without their leading space, of one token or several.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from patchclamp.editing.edit import EditError
from patchclamp.inputs import Tokens
from patchclamp.model import Model
from patchclamp.positions import Span
from patchclamp.tasks.recall import FactTable

Kind = Literal["efficacy", "paraphrase", "neighbourhood", "subject", "two hops"]
SUBJECT = "{SUBJECT}"


@dataclass(frozen=True)
class Question:
    """A prompt, the answer that an edited model should give, and its rival (what was true, or what was written)."""

    kind: Kind
    prompt: str
    wanted: str
    rival: str


@dataclass(frozen=True)
class Rewrite:
    """`subject` with its `prompts` (templates with {SUBJECT}) shall have the answer `new` in place of `old`.

    `paraphrases` are templates that the edit does not see. `neighbours` are whole prompts about other subjects, `about`
    prompts about other things of this one, each with its answer, which must stay. `follows` are prompts whose answer
    follows from this fact and another: (prompt, old answer, new answer).
    """

    subject: str
    prompts: tuple[str, ...]
    old: str
    new: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    about: tuple[tuple[str, str], ...] = ()
    follows: tuple[tuple[str, str, str], ...] = ()
    essence: str = "{SUBJECT} is a"

    def __post_init__(self) -> None:
        for template in (*self.prompts, *self.paraphrases, self.essence):
            if SUBJECT not in template:
                raise EditError(f"the template {template!r} has no {SUBJECT}")
        if not self.prompts:
            raise EditError(f"{self.subject}: a rewrite needs at least one prompt")
        if self.old == self.new:
            raise EditError(f"{self.subject}: the new answer {self.new!r} is the old one")

    def questions(self) -> list[Question]:
        """Everything that is asked about it."""
        filled = [("efficacy", self.prompts), ("paraphrase", self.paraphrases)]
        found = [Question(k, t.replace(SUBJECT, self.subject), self.new, self.old) for k, ts in filled for t in ts]  # type: ignore[arg-type]
        found += [Question("neighbourhood", prompt, answer, self.new) for prompt, answer in self.neighbours]
        found += [Question("subject", prompt, answer, self.new) for prompt, answer in self.about]
        return found + [Question("two hops", prompt, new, old) for prompt, old, new in self.follows]


def read_rewrites(path: str | Path) -> list[Rewrite]:
    """Rewrites from a JSON list, or a line each: objects with the fields of `Rewrite`, or records of CounterFact.

    Raises `EditError`, with the number of the record, for one that is neither.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except json.JSONDecodeError as error:
        raise EditError(f"{path} is not JSON: a list of rewrites, or one a line, is expected ({error})") from error
    found = []
    for index, record in enumerate(records):
        try:
            found.append(_from_counterfact(record) if "requested_rewrite" in record else _from_fields(record))
        except (EditError, KeyError, TypeError, ValueError) as error:
            raise EditError(
                f"{path}, record {index}: {error}. Expected {{subject, prompts, old, new}} and, if you like, "
                "paraphrases, neighbours, about, follows; or a record of CounterFact"
            ) from error
    if not found:
        raise EditError(f"{path} holds no rewrites")
    return found


def _from_fields(record: Mapping[str, Any]) -> Rewrite:
    known = [field.name for field in fields(Rewrite)]
    strange = sorted(set(record) - set(known))
    if strange:
        raise EditError(f"no field is called {', '.join(strange)}; there are {', '.join(known)}")
    if isinstance(record["prompts"], str):
        raise EditError("prompts is a text, not a list of texts")
    lists = {name: tuple(record.get(name, ())) for name in ("prompts", "paraphrases")}
    rows = {name: tuple(tuple(row) for row in record.get(name, ())) for name in ("neighbours", "about", "follows")}
    return Rewrite(**{**record, **lists, **rows})


def _from_counterfact(record: Mapping[str, Any]) -> Rewrite:
    """Its paraphrases are whole texts; those that do not name the subject as it is written cannot be asked."""
    asked = record["requested_rewrite"]
    subject, old = asked["subject"], asked["target_true"]["str"]
    return Rewrite(
        subject,
        (asked["prompt"].replace("{}", SUBJECT),),
        old,
        asked["target_new"]["str"],
        tuple(text.replace(subject, SUBJECT) for text in record.get("paraphrase_prompts", ())),
        tuple((text, old) for text in record.get("neighborhood_prompts", ())),
    )


Follows = Callable[[str, str, str], Sequence[tuple[str, str]]]
"""Of (subject, relation, object): prompts with the answers that follow from it."""


def drawn(
    table: FactTable,
    n: int,
    seed: int = 0,
    *,
    relations: Sequence[str] | None = None,
    prompts: int = 1,
    each: int = 1,
    neighbours: int = 4,
    follows: Follows | None = None,
) -> list[Rewrite]:
    """`n` counterfactuals, `each` a subject: the object becomes another of the same relation.

    The edit sees the first `prompts` phrasings; the one that was kept for testing is always a paraphrase. Neighbours
    are subjects that are not rewritten, with the object that is overwritten, in the phrasing that the edit sees.
    """
    rng = random.Random(seed)
    facts = [fact for fact in table.facts if relations is None or fact[1] in relations]
    objects = {r: sorted({o for _, rr, o in table.facts if rr == r}) for r in {fact[1] for fact in facts}}
    rng.shuffle(facts)
    known: dict[str, list[tuple[str, str, str]]] = {}
    for fact in reversed(facts):
        known.setdefault(fact[0], []).insert(0, fact)
    first = {subject: some[:each] for subject, some in known.items() if len(some) >= each}
    if each < 1 or n % each or n // each > len(first):
        raise EditError(
            f"{n} rewrites, {each} a subject, need {n / max(each, 1):g} subjects with as many facts, and the table has "
            f"{len(first)} with these relations"
        )
    chosen = dict(list(first.items())[: n // each])
    found = []
    for subject, relation, obj in (fact for some in chosen.values() for fact in some):
        templates = list(table.templates[relation])
        kept = table.held_out_template(subject, relation)
        if kept is not None:
            templates.append(templates.pop(kept))
        new = rng.choice([other for other in objects[relation] if other != obj])
        alike = [s for s, r, o in table.facts if (r, o) == (relation, obj) and s not in chosen]
        beside = rng.sample(alike, min(neighbours, len(alike)))
        written = {r for _, r, _ in chosen[subject]}
        others = [(r, o) for s, r, o in table.facts if s == subject and r not in written]
        was, now = (dict(follows(subject, relation, o)) if follows else {} for o in (obj, new))
        found.append(
            Rewrite(
                subject,
                tuple(templates[:prompts]),
                obj,
                new,
                tuple(templates[prompts:]),
                tuple((templates[0].replace(SUBJECT, s), obj) for s in beside),
                tuple((table.templates[r][0].replace(SUBJECT, subject), o) for r, o in others),
                tuple((prompt, was[prompt], answer) for prompt, answer in now.items() if was[prompt] != answer),
            )
        )
    return found


# ── prompts as tokens ─────────────────────────────────────────────────────────────────────────────────────────────────


def answered(model: Model, prompts: Sequence[str], answers: Sequence[str]) -> tuple[Tokens, Bool[Tensor, "prompt pos"]]:
    """Each prompt with its answer behind it, and which tokens are the answer's."""
    tokens = model.tokens([f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)])
    if tokens.offsets is None:
        raise EditError(f"{model.name} has no tokenizer that says which characters a token stands for (a fast one)")
    mask = torch.zeros(tokens.mask.shape, dtype=torch.bool)
    for row, (prompt, offsets) in enumerate(zip(prompts, tokens.offsets, strict=True)):
        for column, (start, end) in enumerate(offsets):
            mask[row, column] = start >= len(prompt) and end > start
    if not bool(mask.any(1).all()):
        raise EditError(f"a token reaches from a prompt into its answer: {prompts[int((~mask.any(1)).nonzero()[0])]!r}")
    return tokens, mask


def subject_ends(tokens: Tokens, subjects: Sequence[str]) -> Int[Tensor, "prompt"]:
    """The column of each prompt's last token of its subject."""
    columns = tokens.frame.columns(Span(tuple(subjects), "last"))
    assert columns is not None
    return columns[:, 0]


def log_probability(
    logits: Tensor, ids: Tensor, mask: Bool[Tensor, "prompt pos"]
) -> tuple[Tensor, Bool[Tensor, "prompt"]]:
    """Log-probability of the marked tokens of each row, in nats, and whether each of them was the likeliest."""
    rows, columns = mask[:, 1:].nonzero(as_tuple=True)
    found = logits[rows, columns].float().log_softmax(-1)  # of the answers' tokens alone: a vocabulary is wide
    tokens = ids[rows, columns + 1].to(logits.device)
    owner = rows.to(logits.device)
    said = found.new_zeros(len(ids)).index_add(0, owner, found.gather(-1, tokens[:, None])[:, 0])
    missed = found.new_zeros(len(ids)).index_add(0, owner, (found.argmax(-1) != tokens).to(found.dtype))
    return said, missed == 0
