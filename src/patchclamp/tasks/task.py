"""A behaviour as data: clean prompts, corrupted prompts, right and wrong answers."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.tasks.baseline import Baseline, measure_baseline
from patchclamp.tasks.example import Example
from patchclamp.tasks.tokens import encode_answers, encode_prompts, locate, tokenizer_of

JSONL_KEYS = ("clean", "corrupt", "answer", "wrong")


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts with an answer, and for each a corrupted twin of as many tokens whose answer is another.

    Rows are right padded; `mask` is True on real tokens, which are the same positions in clean and corrupted.
    `answers` and `wrong` are token ids; a row with fewer than k is filled with -1. `labels` names positions by role
    ("IO", "S2", "END"), one per prompt, -1 where a prompt lacks the role.
    """

    name: str
    clean: Int[Tensor, "prompt pos"]
    corrupt: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, "prompt k"]
    wrong: Int[Tensor, "prompt j"]
    mask: Bool[Tensor, "prompt pos"]
    clean_text: tuple[str, ...] | None = None
    corrupt_text: tuple[str, ...] | None = None
    labels: dict[str, Int[Tensor, " prompt"]] = field(default_factory=dict)

    @classmethod
    def from_prompts(
        cls,
        model: Any,
        *,
        clean: Sequence[str],
        corrupt: Sequence[str],
        answers: Sequence[str] | Sequence[Sequence[str]],
        wrong: Sequence[str] | Sequence[Sequence[str]],
        name: str = "prompts",
    ) -> "Task":
        """A task from text. `model` is a Model or a tokenizer; `answers` and `wrong` hold one text, or several, per
        prompt.

        An answer is what continues the prompt, with its leading space: clean "When Mary and John ... a drink to",
        answer " Mary". ValueError, with the row and its tokens, where a pair does not align token by token, does not
        differ, or an answer is not one token.
        """
        tokenizer = tokenizer_of(model)
        _same_length(clean=clean, corrupt=corrupt, answers=answers, wrong=wrong)
        clean_ids, corrupt_ids = encode_prompts(tokenizer, clean, corrupt)
        right = encode_answers(tokenizer, clean, clean_ids, _nested(answers), "answer")
        bad = encode_answers(tokenizer, clean, clean_ids, _nested(wrong), "wrong answer")
        pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
        task = cls._from_rows(name, clean_ids, corrupt_ids, right, bad, pad=pad)
        return replace(task, clean_text=tuple(clean), corrupt_text=tuple(corrupt))

    @classmethod
    def from_tokens(
        cls,
        *,
        clean: Int[Tensor, "prompt pos"] | Sequence[Sequence[int]],
        corrupt: Int[Tensor, "prompt pos"] | Sequence[Sequence[int]],
        answers: Int[Tensor, "prompt *k"] | Sequence[int] | Sequence[Sequence[int]],
        wrong: Int[Tensor, "prompt *j"] | Sequence[int] | Sequence[Sequence[int]],
        mask: Bool[Tensor, "prompt pos"] | None = None,
        name: str = "tokens",
    ) -> "Task":
        """A task from token ids: tensors or nested lists; answers one per prompt, or several (fill shorter rows with
        -1).

        Nested lists may differ in length from prompt to prompt and are padded; padded tensors need their `mask`
        (right padding).
        """
        if mask is not None:
            mask = torch.as_tensor(mask).bool()
            if isinstance(clean, Tensor) and mask.shape != clean.shape:
                raise ValueError(
                    f"mask has shape {tuple(mask.shape)}, clean {tuple(clean.shape)}; they must be the same."
                )
            if not (mask.long().diff(dim=1) <= 0).all():
                raise ValueError("mask must be right padded: all real tokens of a row before its padding.")
        sides = [_rows(side, mask) for side in (clean, corrupt)]
        _same_length(clean=sides[0], corrupt=sides[1], answers=answers, wrong=wrong)
        for row, (good, bad) in enumerate(zip(*sides, strict=True)):
            both = f"\n  clean   ({len(good)}): {good}\n  corrupt ({len(bad)}): {bad}"
            if not good or len(good) != len(bad):
                raise ValueError(
                    f"row {row}: clean and corrupted must have the same number of tokens, at least one.{both}"
                )
            if good == bad:
                raise ValueError(f"row {row}: clean and corrupted are the same, so there is nothing to patch.{both}")
        chosen = [[_without_fill(ids) for ids in _nested(_lists(some))] for some in (answers, wrong)]
        for what, some in zip(("answers", "wrong"), chosen, strict=True):
            for row, ids in enumerate(some):
                if not ids:
                    raise ValueError(f"row {row}: {what} is empty; each prompt needs at least one.")
        return cls._from_rows(name, *sides, *chosen, pad=0)

    @classmethod
    def from_jsonl(cls, path: str | Path, model: Any, *, name: str | None = None) -> "Task":
        """A task from a file with one JSON object a line:

        `{"clean": "The opposite of hot is", "corrupt": "The opposite of big is", "answer": " cold", "wrong": "
        small"}`

        `answer` and `wrong` are a text or a list of texts. Every error names the file and the line.
        """
        path = Path(path)
        lines = [
            (n, line) for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1) if line.strip()
        ]
        if not lines:
            raise ValueError(f"{path} is empty; each line must be an object with the keys {', '.join(JSONL_KEYS)}.")
        rows = [_checked_line(path, number, line) for number, line in lines]
        columns = {key: [row[key] for row in rows] for key in JSONL_KEYS}
        try:
            return cls.from_prompts(
                model,
                clean=columns["clean"],
                corrupt=columns["corrupt"],
                answers=columns["answer"],
                wrong=columns["wrong"],
                name=name or path.stem,
            )
        except ValueError as error:
            row, _, rest = str(error).removeprefix("row ").partition(":")
            if not row.isdigit():
                raise
            raise ValueError(f"{path}, line {lines[int(row)][0]}:{rest}") from error

    @classmethod
    def from_examples(cls, model: Any, name: str, examples: Sequence[Example]) -> "Task":
        """A task from `Example`s: the texts, and the positions of their roles as labels."""
        if not examples:
            raise ValueError(f"{name}: n must be at least 1.")
        task = cls.from_prompts(
            model,
            clean=[example.clean.text for example in examples],
            corrupt=[example.corrupt.text for example in examples],
            answers=[example.answers for example in examples],
            wrong=[example.wrong for example in examples],
            name=name,
        )
        tokenizer = tokenizer_of(model)
        if not getattr(tokenizer, "is_fast", False):
            return replace(task, labels={"END": task.positions})
        places = [locate(tokenizer, e.clean.text, [(s.role, s.start, s.end) for s in e.clean.spans]) for e in examples]
        roles = dict.fromkeys(span.role for example in examples for span in example.clean.spans)
        labels = {role: torch.tensor([place.get(role, -1) for place in places]) for role in roles}
        return replace(task, labels=labels | {"END": task.positions})

    @classmethod
    def _from_rows(cls, name: str, clean: list, corrupt: list, answers: list, wrong: list, *, pad: int) -> "Task":
        lengths = torch.tensor([len(row) for row in clean])
        task = cls(
            name=name,
            clean=_padded(clean, pad),
            corrupt=_padded(corrupt, pad),
            answers=_padded(answers, -1),
            wrong=_padded(wrong, -1),
            mask=torch.arange(int(lengths.max())) < lengths[:, None],
        )
        for row in range(len(task)):
            both = set(answers[row]) & set(wrong[row])
            if both:
                raise ValueError(f"row {row}: token {min(both)} is given both as a right and as a wrong answer.")
        return replace(task, labels={"END": task.positions})

    @property
    def positions(self) -> Int[Tensor, " prompt"]:
        """Where each prompt is answered: its last real token."""
        return self.mask.sum(1) - 1

    def at_answer(self, logits: Float[Tensor, "prompt pos vocab"]) -> Float[Tensor, "prompt vocab"]:
        """The logits at each prompt's answer position, which is what metrics take."""
        if logits.ndim != 3 or logits.shape[:2] != self.clean.shape:
            raise ValueError(
                f"expected logits [prompt, pos, vocab] = [{len(self)}, {self.clean.shape[1]}, vocab], "
                f"got {tuple(logits.shape)}."
            )
        return logits[torch.arange(len(self), device=logits.device), self.positions.to(logits.device)]

    def baseline(self, model: Any, *, metric: Any = "logit_difference", seed: int = 0, batch: int = 64) -> Baseline:
        """Whether the model does this at all: accuracy and the metric on clean and corrupted prompts, with bootstrap
        intervals.
        """
        return measure_baseline(model, self, metric=metric, seed=seed, batch=batch)

    def to(self, device: str | torch.device) -> "Task":
        """The same task with its tensors on `device`."""
        moved = {key: getattr(self, key).to(device) for key in ("clean", "corrupt", "answers", "wrong", "mask")}
        return replace(self, **moved, labels={role: where.to(device) for role, where in self.labels.items()})

    def __len__(self) -> int:
        return self.clean.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Task":
        """Some of the prompts: `task[:8]`, `task[[0, 3]]`, or a mask. Padding that no prompt needs any more is
        dropped.
        """
        if isinstance(rows, int):
            raise TypeError(f"task[{rows}] would not be a task; write task[{rows}:{rows + 1}] or task[[{rows}]].")
        index = torch.arange(len(self))[rows if isinstance(rows, slice) else torch.as_tensor(rows)]
        if not len(index):
            raise IndexError(f"no prompt of {self.name} ({len(self)} prompts) is selected by {rows}.")
        mask = self.mask[index]
        width = int(mask.sum(1).max())
        texts = {
            key: tuple(text[i] for i in index.tolist()) if (text := getattr(self, key)) is not None else None
            for key in ("clean_text", "corrupt_text")
        }
        return replace(
            self,
            clean=self.clean[index, :width],
            corrupt=self.corrupt[index, :width],
            mask=mask[:, :width],
            answers=self.answers[index],
            wrong=self.wrong[index],
            labels={role: where[index] for role, where in self.labels.items()},
            **texts,
        )

    def __repr__(self) -> str:
        shape = f"{len(self)} prompts of {int(self.mask.sum(1).min())} to {self.clean.shape[1]} tokens"
        roles = f", labels {' '.join(self.labels)}" if self.labels else ""
        first = f", first {self.clean_text[0]!r}" if self.clean_text else ""
        return f"Task({self.name}: {shape}{roles}{first})"

    def save(self, path: str | Path) -> None:
        """Write token ids, texts and labels as JSONL, one prompt a line; `Task.load` gives the same task back."""
        with Path(path).open("w", encoding="utf-8") as out:
            for row in range(len(self)):
                length = int(self.positions[row]) + 1
                line = {
                    "task": self.name,
                    "clean_ids": self.clean[row, :length].tolist(),
                    "corrupt_ids": self.corrupt[row, :length].tolist(),
                    "answer_ids": _without_fill(self.answers[row].tolist()),
                    "wrong_ids": _without_fill(self.wrong[row].tolist()),
                    "labels": {role: int(where[row]) for role, where in self.labels.items()},
                }
                if self.clean_text and self.corrupt_text:
                    line |= {"clean": self.clean_text[row], "corrupt": self.corrupt_text[row]}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Task":
        """Read what `save` wrote. A file of texts without token ids is for `Task.from_jsonl(path, model)`."""
        path = Path(path)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not rows or "clean_ids" not in rows[0]:
            raise ValueError(
                f"{path} was not written by Task.save; for a file of prompts use Task.from_jsonl({path.name!r}, model)."
            )
        ids = [[row[key] for row in rows] for key in ("clean_ids", "corrupt_ids", "answer_ids", "wrong_ids")]
        task = cls._from_rows(rows[0]["task"], *ids, pad=0)
        texts = [tuple(row[key] for row in rows) if key in rows[0] else None for key in ("clean", "corrupt")]
        labels = {role: torch.tensor([row["labels"][role] for row in rows]) for role in rows[0]["labels"]}
        return replace(task, clean_text=texts[0], corrupt_text=texts[1], labels=labels)


def _checked_line(path: Path, number: int, line: str) -> Mapping[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno}): {line[:80]}") from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: expected an object with the keys {', '.join(JSONL_KEYS)}, got {type(row).__name__}."
        )
    for key in row:
        if key not in JSONL_KEYS:
            near = difflib.get_close_matches(key, JSONL_KEYS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"{where}: unknown key '{key}'.{hint} The keys are {', '.join(JSONL_KEYS)}.")
    missing = [key for key in JSONL_KEYS if key not in row]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}. The keys are {', '.join(JSONL_KEYS)}.")
    for key in ("clean", "corrupt"):
        if not isinstance(row[key], str):
            raise ValueError(f"{where}: '{key}' must be a text, got {row[key]!r}.")
    return row


def _same_length(**columns: Any) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"each prompt needs its entry in every column, but there are {lengths}.")


def _nested(answers: Any) -> list[list]:
    return [list(some) if isinstance(some, (list, tuple)) else [some] for some in answers]


def _lists(values: Any) -> Any:
    return values.tolist() if isinstance(values, Tensor) else values


def _rows(side: Any, mask: Tensor | None) -> list[list[int]]:
    rows = [list(map(int, _lists(row))) for row in side]
    if mask is None:
        return rows
    return [row[: int(real.sum())] for row, real in zip(rows, mask, strict=True)]


def _without_fill(ids: Sequence[int]) -> list[int]:
    return [token for token in ids if token != -1]


def _padded(rows: list[list[int]], fill: int) -> Int[Tensor, "row width"]:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.long)
