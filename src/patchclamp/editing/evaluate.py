"""Whether a fact was rewritten, and what else was: each measure teacher-forced and generated, before and after.

    report = pc.editing.evaluate(model, facts, edit)             # one edit of all facts; or a list, one for each
    report.rows()                                                # measure, n, before and after, by three judges
    report["paraphrase"].after.generated

Three judges: `prefers`, log p(wanted) > log p(rival); `forced`, every token of the wanted answer is the likeliest when
the ones before it are given; `generated`, the greedy continuation begins with it. Wanted is the new object, but for
neighbours and other facts about the subject, whose answers must stay (Meng et al. 2022, arXiv:2202.05262, §3.4). Two
hops follow Cohen et al. 2023 (arXiv:2307.12976). Fluency is the entropy of the pairs and triples of words that it
writes.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchclamp.editing.edit import Edit
from patchclamp.editing.rewrite import Kind, Question, Rewrite, answered, log_probability
from patchclamp.model import Model
from patchclamp.views import track

KINDS: tuple[Kind, ...] = get_args(Kind)
JUDGES = ("prefers", "forced", "generated")


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers to some questions, by three judges."""

    prefers: Bool[Tensor, "question"]
    forced: Bool[Tensor, "question"]
    generated: Bool[Tensor, "question"]
    margin: Float[Tensor, "question"]  # log p(wanted) - log p(rival), nats

    def __getitem__(self, rows: Any) -> "Answers":
        return Answers(self.prefers[rows], self.forced[rows], self.generated[rows], self.margin[rows])


def ask(model: Model, questions: Sequence[Question]) -> Answers:
    """The answers of the model as it is now."""
    prompts, wanted, rivals = zip(*((q.prompt, q.wanted, q.rival) for q in questions), strict=True)
    (said, forced), (other, _) = (_teacher_forced(model, prompts, answers) for answers in (wanted, rivals))
    longest = max(int(answered(model, prompts, wanted)[1].sum(1).max()), 1)
    texts = model.generate(list(prompts), max_new_tokens=longest).new_text
    assert isinstance(texts, list)
    generated = torch.tensor([text.strip().startswith(w.strip()) for text, w in zip(texts, wanted, strict=True)])
    return Answers(said > other, forced, generated, said - other)


@dataclass(frozen=True, eq=False)
class Measure:
    """One measure over `n` questions before and after the edit."""

    kind: Kind
    before: Answers
    after: Answers

    @property
    def n(self) -> int:
        return len(self.before.prefers)

    def share(self, judge: str, when: str = "after") -> float:
        """The share of questions with the wanted answer."""
        return float(getattr(getattr(self, when), judge).double().mean())


@dataclass(frozen=True, eq=False)
class Report:
    """Measures by kind, `owner` of each kind's questions (which rewrite), and fluency in bits before and after."""

    measures: dict[Kind, Measure]
    owners: dict[Kind, Tensor]
    fluency: tuple[float, float] | None

    def __getitem__(self, kind: Kind) -> Measure:
        if kind not in self.measures:
            raise KeyError(f"nothing was asked about {kind!r}; there are {', '.join(self.measures)}")
        return self.measures[kind]

    @property
    def took(self) -> Bool[Tensor, "rewrite"]:
        """Of each rewrite, whether the new answer is generated after all of its prompts."""
        owner, hits = self.owners["efficacy"], self["efficacy"].after.generated
        return torch.stack([hits[owner == i].all() for i in range(int(owner.max()) + 1)])

    def rows(self) -> list[dict[str, Any]]:
        """A table: shares before and after, by judge."""
        found: list[dict[str, Any]] = []
        for kind, measure in self.measures.items():
            row: dict[str, Any] = {"measure": kind, "n": measure.n}
            for judge in JUDGES:
                row |= {f"{judge}, before": measure.share(judge, "before"), judge: measure.share(judge)}
            found.append(row)
        if self.fluency is not None:
            found.append(
                {"measure": "fluency (bits)", "generated, before": self.fluency[0], "generated": self.fluency[1]}
            )
        return found


def evaluate(
    model: Model, rewrites: Sequence[Rewrite], edit: Edit | Sequence[Edit], *, write: int = 0, seed: int = 0
) -> Report:
    """Ask everything about the rewrites of the model as it is, and under the edit (of each, under its own).

    `write` tokens are sampled after each first prompt for fluency; none if 0. Raises `ValueError` where there is not
    one edit for each rewrite.
    """
    if not isinstance(edit, Edit) and len(edit) != len(rewrites):
        raise ValueError(f"{len(edit)} edits for {len(rewrites)} rewrites: one for each, or a single one for all")
    asked = [question for one in rewrites for question in one.questions()]
    owner = torch.tensor([index for index, one in enumerate(rewrites) for _ in one.questions()])
    starts = [one.questions()[0].prompt for one in rewrites]
    before = ask(model, asked)
    if isinstance(edit, Edit):
        words = _written(model, starts, write, seed)
        with edit.applied(model):
            after, words_after = ask(model, asked), _written(model, starts, write, seed)
    else:
        parts, words, words_after = [], [], []
        for index, one in enumerate(track(edit, "edits")):
            words += _written(model, starts[index : index + 1], write, seed + index)
            with one.applied(model):
                parts.append(ask(model, rewrites[index].questions()))
                words_after += _written(model, starts[index : index + 1], write, seed + index)
        after = Answers(*(torch.cat([getattr(p, name) for p in parts]) for name in (*JUDGES, "margin")))
    measures: dict[Kind, Measure] = {}
    owners: dict[Kind, Tensor] = {}
    for kind in KINDS:
        rows = torch.tensor([i for i, question in enumerate(asked) if question.kind == kind], dtype=torch.long)
        if len(rows):
            measures[kind], owners[kind] = Measure(kind, before[rows], after[rows]), owner[rows]
    fluency = None
    if write:
        fluency = (_mean(map(word_entropy, words)), _mean(map(word_entropy, words_after)))
    return Report(measures, owners, fluency)


def word_entropy(text: str) -> float:
    """Entropy of the pairs of words (a third) and of the triples (two thirds) of a text, in bits: low where it repeats.

    >>> word_entropy("a a a a a") < word_entropy("a b c d e")
    True
    """
    words = text.split()
    found = []
    for n in (2, 3):
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        total = sum(counts.values())
        found.append(-sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0)
    return found[0] / 3 + found[1] * 2 / 3


def _mean(values: Iterator[float]) -> float:
    every = list(values)
    return sum(every) / len(every)


def _written(model: Model, starts: Sequence[str], tokens: int, seed: int) -> list[str]:
    if not tokens:
        return []
    texts = model.generate(list(starts), max_new_tokens=tokens, do_sample=True, seed=seed).new_text
    assert isinstance(texts, list)
    return texts


def _teacher_forced(
    model: Model, prompts: Sequence[str], answers: Sequence[str], batch: int = 64
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer, and whether all its tokens are the likeliest."""
    found = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        tokens, mask = answered(model, prompts[part], answers[part])
        logits = model.run(tokens).logits
        assert logits is not None
        found.append([x.cpu() for x in log_probability(logits, tokens.ids, mask)])
    said, likeliest = (torch.cat(list(column)) for column in zip(*found, strict=True))
    return said, likeliest
