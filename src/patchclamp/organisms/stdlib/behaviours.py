"""What code makes one expect, measured on held-out files: closing brackets, indentation, names never seen in training.

    questions = behaviours.questions(tokenizer, trained, held_out)   # {"brackets": ..., "indentation": ..., ...}
    behaviours.accuracy(predict, questions["brackets"])              # predict: histories -> logits or probabilities

No question is chosen, or dropped, by what a model makes of it.
"""

import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.organisms.stdlib.labels import labels
from patchclamp.tasks.example import Span

HISTORY = 128  # tokens before each question


@dataclass(frozen=True)
class Questions:
    """`histories` Int[question, 128] are followed by `answers` Int[question], one of the `choices` Int[choice]."""

    histories: Int[Tensor, "question pos"]
    answers: Int[Tensor, " question"]
    choices: Int[Tensor, " choice"]


def questions(
    tokenizer: Any, trained: Mapping[str, str], held_out: Mapping[str, str], *, most: int = 500, seed: int = 0
) -> dict[str, Questions]:
    """Up to `most` questions of each behaviour, drawn from all that the held-out files have.

    - `brackets`: which of ")", "]" and "}" comes, where one of them does, and its partner is within the history.
    - `indentation`: which line break with how many blanks comes after the ":" of a block.
    - `new_names`: every token but the first of a name that no training file has, and that the history has; among all
      tokens. Only copying can answer it.
    - `new_names_first`: the same where the history does not have the name: what can be guessed without copying.
    """
    known = {name for text in trained.values() for name in re.findall(r"[^\W\d]\w*", text)}
    found: dict[str, list[tuple[list[int], int]]] = {
        name: [] for name in ("brackets", "indentation", "new_names", "new_names_first")
    }
    for text in held_out.values():
        encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]

        def put(kind: str, at: int, ids: list[int] = ids) -> None:
            found[kind].append((ids[at - HISTORY : at], ids[at]))

        spans = labels(text)
        opening = _partners(spans)
        for span in spans:
            first, last = bisect_left(starts, span.start), bisect_right(ends, span.end)  # tokens first:last
            whole = first < last and starts[first] == span.start and ends[last - 1] == span.end
            if first < HISTORY or not whole:
                continue
            since = starts[first - HISTORY]
            if span.role == "closing" and opening[span] >= since:
                put("brackets", first)
            elif span.role == "deeper" and last - first == 1:
                put("indentation", first)
            elif span.role == "name" and text[span.start : span.end] not in known:
                name = re.compile(rf"\b{text[span.start : span.end]}\b")
                had = name.search(text, since, span.start)
                if had and had.start() < starts[last - 1 - HISTORY]:
                    continue  # the history of its later tokens has lost it
                for at in range(first + 1, last):
                    put("new_names" if had else "new_names_first", at)
    every = torch.arange(len(tokenizer))
    blanks = [i for i in range(len(tokenizer)) if re.fullmatch(r"\n[ \t]*", tokenizer.decode([i]))]
    brackets = tokenizer.convert_tokens_to_ids([")", "]", "}"])
    choices = {"brackets": torch.tensor(brackets), "indentation": torch.tensor(blanks)}
    rng = random.Random(seed)
    drawn = {kind: rng.sample(rows, min(most, len(rows))) for kind, rows in found.items()}
    return {
        kind: Questions(
            torch.tensor([history for history, _ in rows]).reshape(-1, HISTORY),
            torch.tensor([answer for _, answer in rows]),
            choices.get(kind, every),
        )
        for kind, rows in drawn.items()
    }


def accuracy(
    predict: Callable[[Int[Tensor, "question pos"]], Float[Tensor, "question vocabulary"]], asked: Questions
) -> float:
    """Share of questions in which the answer is the first of the choices, by logits or probabilities."""
    guesses = [
        asked.choices[predict(histories)[:, asked.choices].argmax(-1)] for histories in asked.histories.split(32)
    ]
    return (torch.cat(guesses) == asked.answers).float().mean().item()


def commonest(asked: Questions) -> float:
    """The accuracy of always giving the answer that is most often right."""
    return asked.answers.bincount().max().item() / len(asked.answers)


def _partners(spans: tuple[Span, ...]) -> dict[Span, int]:
    """Where the bracket was opened that each closing one closes."""
    opened, partner = [], {}
    for span in spans:
        if span.role == "opening":
            opened.append(span.start)
        elif span.role == "closing":
            partner[span] = opened.pop()
    return partner
