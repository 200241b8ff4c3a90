"""Write two tasks for the code model as JSONL, and print how well the model does them, by plain transformers.

    python examples/code_model/make_tasks.py code-model --out code-tasks

`brackets.jsonl`: close the bracket that was opened last. `repeat.jsonl`: repeat the name that an attribute has. A row
is {"clean", "corrupt", "answer", "wrong"}: two prompts that align token by token, and two single tokens; "answer" is
right for the clean prompt and "wrong" for the corrupted one. Names are drawn from the library's own, in combinations
that the library does not have. No row is chosen, or dropped, by what the model makes of it.
"""

import argparse
import ast
import json
import keyword
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from train import library
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, str]
OTHER_KIND = str.maketrans("[]()", "()[]")  # square brackets and round ones change places


def identifiers(files: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Names of variables, and of parameters, that are one token each and not rare; frequent ones first."""
    variables, parameters = Counter(), Counter()
    for text in files.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name):
                variables[node.id] += 1
            elif isinstance(node, ast.arg):
                parameters[node.arg] += 1

    def usable(name: str) -> bool:
        plain = len(name) > 1 and not keyword.iskeyword(name) and name not in ("self", "cls")
        return plain and len(tokenizer(name)["input_ids"]) == 1

    return (
        [name for name, seen in variables.most_common() if seen >= 20 and usable(name)],
        [name for name, seen in parameters.most_common() if seen >= 5 and usable(name)],
    )


def bracket_row(names: list[str], round_first: bool, draw: random.Random) -> tuple[Row, list[str]]:
    """Two open brackets, the last of them to be closed; and what the library must not have for the row to be new."""
    left, call, outer, inner = draw.sample(names, 4)
    clean, answer = f"\n        {left} = {call}({outer}[{inner}", "]"
    if not round_first:
        clean, answer = clean.translate(OTHER_KIND), answer.translate(OTHER_KIND)
    row = {
        "clean": clean,
        "corrupt": clean.translate(OTHER_KIND),
        "answer": answer,
        "wrong": answer.translate(OTHER_KIND),
    }
    return row, [f"{outer}[{inner}", f"{outer}({inner}"]


def repeat_row(names: list[str], _: bool, draw: random.Random) -> tuple[Row, list[str]]:
    """A name to repeat; and what the library must not have for the row to be new."""
    one, other = draw.sample(names, 2)
    row = {"clean": f"\n        self.{one} = ", "corrupt": f"\n        self.{other} = ", "answer": one, "wrong": other}
    return row, [f".{one} = {one}", f".{other} = {other}"]


def draw_rows(
    make: Callable[[list[str], bool, random.Random], tuple[Row, list[str]]],
    names: list[str],
    source: str,
    n: int,
    seed: int,
) -> list[Row]:
    """`n` rows with different clean prompts, of both kinds in turn; `source` has none, so none is recalled."""
    draw, found = random.Random(seed), {}
    for _ in range(100 * n):
        row, new = make(names, len(found) % 2 == 0, draw)
        if not any(part in source for part in new):
            found[row["clean"]] = row
        if len(found) == n:
            return list(found.values())
    raise ValueError(f"{len(names)} names gave {len(found)} new rows, {n} were asked for: ask for fewer")


def make_tasks(files: dict[str, str], tokenizer: PreTrainedTokenizerBase, *, n: int, seed: int) -> dict[str, list[Row]]:
    """The rows of each task by its name."""
    variables, parameters = identifiers(files, tokenizer)
    source = "\n".join(files.values())
    return {
        "brackets": draw_rows(bracket_row, variables, source, n, seed),
        "repeat": draw_rows(repeat_row, parameters, source, n, seed),
    }


def encode(rows: list[Row], key: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Token ids [row, position] of one field; an error where rows differ in length, since then nothing would align."""
    ids = [tokenizer(row[key])["input_ids"] for row in rows]
    lengths = sorted({len(i) for i in ids})
    if len(lengths) > 1:
        raise ValueError(f"the rows' {key!r} have {lengths} tokens, expected one length")
    return torch.tensor(ids)


@torch.no_grad()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> dict[str, float]:
    """Share of rows where the right answer beats the wrong one, on clean prompts and on corrupted ones.

    On the corrupted prompts "wrong" is right. Under `clean first` and `corrupt first`: where it beats all other tokens.
    """
    answer, wrong, clean, corrupt = (encode(rows, key, tokenizer) for key in ("answer", "wrong", "clean", "corrupt"))
    if answer.shape[1] != 1 or wrong.shape[1] != 1:
        raise ValueError(f"answers have {answer.shape[1]} and {wrong.shape[1]} tokens, expected 1: take other names")
    if clean.shape != corrupt.shape:
        raise ValueError(f"clean and corrupted do not align: {clean.shape[1]} and {corrupt.shape[1]} tokens")
    shares = {}
    for name, prompts, right, other in (("clean", clean, answer, wrong), ("corrupt", corrupt, wrong, answer)):
        logits = model(prompts).logits[:, -1]  # [row, vocabulary]
        shares[name] = (logits.gather(1, right) > logits.gather(1, other)).float().mean().item()
        shares[f"{name} first"] = (logits.argmax(-1, keepdim=True) == right).float().mean().item()
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the folder that train.py wrote")
    parser.add_argument("--out", type=Path, default=Path("code-tasks"), help="folder for the tasks")
    parser.add_argument("--n", type=int, default=64, help="rows in each task")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of names")
    options = parser.parse_args()
    if not (options.model / "config.json").exists():
        parser.error(f"{options.model} has no config.json: expected a folder that train.py has finished")

    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in make_tasks(library(), tokenizer, n=options.n, seed=options.seed).items():
        path = options.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        share = accuracy(model, tokenizer, rows)
        print(f"{path}: {len(rows)} rows, such as {json.dumps(rows[0])}")
        for kind in ("clean", "corrupt"):
            print(
                f"  {kind + ' prompts':15}  right beats wrong {share[kind]:6.1%}, "
                f"right is first of all tokens {share[kind + ' first']:6.1%}"
            )


if __name__ == "__main__":
    main()
