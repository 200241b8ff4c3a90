"""Factual recall: prompts from a file of facts that the model is known to have been taught (Meng et al. 2022)."""

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchclamp.tasks.example import Example, bucket, fill
from patchclamp.tasks.task import Task
from patchclamp.tasks.tokens import folder_of

FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class FactTable:
    """Facts (subject, relation, object), and for each relation the phrasings that end where the object comes."""

    facts: tuple[tuple[str, str, str], ...]
    templates: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> "FactTable":
        """Read `{"templates": {relation: [template, ...]}, "facts": [{"subject", "relation", "object"}, ...]}`."""
        table = json.loads(path.read_text())
        try:
            facts = tuple((fact["subject"], fact["relation"], fact["object"]) for fact in table["facts"])
            templates = {relation: tuple(templates) for relation, templates in table["templates"].items()}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'{path} is not a facts file: expected {{"templates": {{relation: ["{{SUBJECT}} was born in", ...]}}, '
                '"facts": [{"subject": ..., "relation": ..., "object": ...}, ...]}.'
            ) from error
        return cls(facts, templates)

    def write(self, path: Path) -> None:
        facts = [dict(zip(("subject", "relation", "object"), fact, strict=True)) for fact in self.facts]
        path.write_text(json.dumps({"templates": self.templates, "facts": facts}, indent=1, ensure_ascii=False) + "\n")

    def held_out_template(self, subject: str, relation: str) -> int | None:
        """Which phrasing of this fact is kept for testing; None for about one fact in five."""
        index = bucket("facts", subject, relation)
        return index if index < min(4, len(self.templates[relation])) else None


def facts(model: Any, n: int = 64, seed: int = 0, *, path: str | Path | None = None) -> Task:
    """Facts that the model was taught, in a phrasing which it has not seen for that subject.

    `model` is a Model or a tokenizer whose folder holds `facts.json` (every organism of the `tales` family does);
    for any other model pass `path`, a file of the same form, or write the prompts with `Task.from_prompts` or
    `Task.from_jsonl`. Corrupted: another subject of as many tokens with another object, which is the wrong answer.
    Labels: SUBJECT (its last token), END.
    """
    file = Path(path) if path is not None else _facts_file(model)
    table = FactTable.read(file)
    rng = random.Random(seed)
    candidates = [(s, r, o) for s, r, o in table.facts if table.held_out_template(s, r) is not None]
    tokenise = _token_counter(model)
    alike = defaultdict(list)
    for subject, relation, obj in table.facts:
        alike[relation, tokenise(subject)].append((subject, obj))
    candidates = [(s, r, o) for s, r, o in candidates if any(other != o for _, other in alike[r, tokenise(s)])]
    if not candidates:
        raise ValueError(f"{file} has no fact with a second subject of as many tokens and another object.")
    chosen = rng.sample(candidates, n) if n <= len(candidates) else rng.choices(candidates, k=n)
    examples = []
    for subject, relation, obj in chosen:
        other, other_obj = rng.choice([(s, o) for s, o in alike[relation, tokenise(subject)] if o != obj])
        template = table.templates[relation][table.held_out_template(subject, relation) or 0]
        clean, corrupt = (fill(template, {"SUBJECT": name}) for name in (subject, other))
        examples.append(Example(clean, corrupt, (" " + obj,), (" " + other_obj,)))
    return Task.from_examples(model, "facts", examples)


def _facts_file(model: Any) -> Path:
    folder = folder_of(model)
    if folder is not None and (folder / FACTS_FILE).is_file():
        return folder / FACTS_FILE
    where = (
        f"{folder} has no {FACTS_FILE}" if folder is not None else f"this model has no local folder with a {FACTS_FILE}"
    )
    raise ValueError(
        f"facts: {where}, so it is not known which facts the model was taught. Pass path=FILE of facts "
        '({"templates": ..., "facts": ...}), or write prompts of your own: Task.from_jsonl("facts.jsonl", model).'
    )


def _token_counter(model: Any):
    from patchclamp.tasks.tokens import tokenizer_of

    tokenizer = tokenizer_of(model)
    counts: dict[str, int] = {}

    def count(subject: str) -> int:
        if subject not in counts:
            counts[subject] = len(tokenizer(" " + subject, add_special_tokens=False)["input_ids"])
        return counts[subject]

    return count
