"""From prompts as text to prompts as tokens, with every check that a task rests on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = list[int]


def tokenizer_of(model: Any) -> Any:
    """The tokenizer of a Model, or the tokenizer itself; TypeError where there is none."""
    tokenizer = getattr(model, "tokenizer", model)
    if tokenizer is None or not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(
            f"a task made of text needs a model with a tokenizer, or a Hugging Face tokenizer; "
            f"{type(model).__name__} has none. Use Task.from_tokens(clean=, corrupt=, answers=, wrong=) with token ids."
        )
    return tokenizer


def folder_of(model: Any) -> Path | None:
    """The local folder that a model or its tokenizer was loaded from; None where it came from a hub or from memory."""
    config = getattr(getattr(model, "hf", None), "config", None)
    for name in (getattr(config, "_name_or_path", ""), getattr(getattr(model, "tokenizer", model), "name_or_path", "")):
        if name and Path(name).is_dir():
            return Path(name)
    return None


def is_single_token(model: Any) -> Callable[[str], bool]:
    """A test whether a text, with its leading space, is one token of this tokenizer."""
    tokenizer = tokenizer_of(model)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def show(tokenizer: Any, ids: Row) -> str:
    """Tokens as a reader wants them: `[When| Mary| and]`."""
    return "[" + "|".join(tokenizer.decode([token]) for token in ids) + "]"


def encode_prompts(tokenizer: Any, clean: Sequence[str], corrupt: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Token ids of both sides, as the tokenizer gives them (with its BOS, if it has one).

    ValueError, with the row and its tokens, where clean and corrupted do not align token by token or do not differ.
    """
    clean_ids, corrupt_ids = (tokenizer(list(texts))["input_ids"] for texts in (clean, corrupt))
    for row, (good, bad) in enumerate(zip(clean_ids, corrupt_ids, strict=True)):
        both = f"\n  clean   ({len(good)}): {show(tokenizer, good)}\n  corrupt ({len(bad)}): {show(tokenizer, bad)}"
        if not good:
            raise ValueError(f"row {row}: the clean prompt is empty.")
        if len(good) != len(bad):
            raise ValueError(
                f"row {row}: clean and corrupted must align token by token, but have {len(good)} and "
                f"{len(bad)} tokens.{both}"
            )
        if good == bad:
            raise ValueError(f"row {row}: clean and corrupted are the same, so there is nothing to patch.{both}")
    return clean_ids, corrupt_ids


def encode_answers(
    tokenizer: Any, prompts: Sequence[str], prompt_ids: list[Row], answers: Sequence[Sequence[str]], what: str
) -> list[Row]:
    """The one token which each answer adds to its prompt.

    Answers are tokenised after their prompt, so that the id is the one that the model would be trained to predict;
    where the two merge into other pieces, alone. ValueError, with the row and the tokens, where an answer is not one
    token there, or would be glued to the prompt's last word although a single token with a leading space exists.
    """
    flat = [(row, answer) for row, some in enumerate(answers) for answer in some]
    for row, answer in flat:
        if not isinstance(answer, str) or not answer:
            raise ValueError(f"row {row}: {what} {answer!r} is not a text of at least one character.")
    single = is_single_token(tokenizer)
    together = tokenizer([prompts[row] + answer for row, answer in flat])["input_ids"] if flat else []
    rows: list[Row] = [[] for _ in prompts]
    for (row, answer), ids in zip(flat, together, strict=True):
        prompt = prompt_ids[row]
        glued = answer[0].isalpha() and prompts[row][-1:].isalpha() and single(" " + answer)
        if glued:
            raise ValueError(
                f"row {row}: {what} {answer!r} has no leading space, so after the prompt it reads "
                f"'...{(prompts[row] + answer)[-24:]}'. ' {answer}' (with the space) is one token: did you mean that?"
            )
        if len(ids) == len(prompt) + 1 and ids[:-1] == prompt:
            rows[row].append(ids[-1])
            continue
        # " 1700" may be one token of its own; after " 17" the model can still say "00", and that is what is asked.
        alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(alone) == 1 and tokenizer.decode(prompt + alone) == tokenizer.decode(prompt) + answer:
            rows[row].append(alone[0])
            continue
        hint = f" ' {answer}' (with a leading space) is one token: did you mean that?" if single(" " + answer) else ""
        raise ValueError(
            f"row {row}: {what} {answer!r} must be exactly one token after its prompt, but is "
            f"{show(tokenizer, alone)} by itself and with the prompt {show(tokenizer, ids)}.{hint}"
        )
    for row, ids in enumerate(rows):
        if not ids:
            raise ValueError(f"row {row}: no {what} is given; each prompt needs at least one.")
    return rows


def locate(tokenizer: Any, text: str, spans: Sequence[tuple[str, int, int]]) -> dict[str, int]:
    """The last token of each role's span, by the tokenizer's own offsets (a fast tokenizer is needed)."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    specials = set(tokenizer.all_special_ids)
    places: dict[str, int] = {}
    for position, ((start, end), token) in enumerate(zip(encoded["offset_mapping"], encoded["input_ids"], strict=True)):
        if token in specials or start == end:
            continue
        for role, first, last in spans:
            if start < last and end > first:
                places[role] = position
    return places
