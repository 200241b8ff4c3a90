"""What is known of `tales`: its facts, its text with labels, and prompts with their answers."""

from pathlib import Path

from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer

from patchclamp.organisms.tales import grammar
from patchclamp.organisms.truth import Truth
from patchclamp.tasks.example import Span
from patchclamp.tasks.recall import FACTS_FILE, FactTable, facts

BEHAVIOURS = ("ioi", "greater_than", "induction", "gendered_pronoun", "colored_objects", "docstring", "facts")


def truth_of(folder: Path) -> Truth:
    """The truth of a model of the family, from its folder. A sample asks for facts, in phrasings held out from
    training.
    """

    def sample(n: int, seed: int) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, " prompt"]]:
        task = facts(AutoTokenizer.from_pretrained(folder), n=n, seed=seed, path=folder / FACTS_FILE)
        return task.clean, task.answers[:, 0]

    return Truth(
        name=folder.name,
        facts=FactTable.read(folder / FACTS_FILE).facts,
        behaviours=BEHAVIOURS,
        sampler=sample,
        writer=grammar.documents,
    )


def token_roles(document: grammar.Document, tokenizer) -> list[tuple[str, ...]]:
    """For every token of the document (BOS included), the roles that it plays; a role of the whole text holds on
    every token.
    """
    encoded = tokenizer(document.text, return_offsets_mapping=True)
    return [_roles(document.spans, *offsets) for offsets in encoded["offset_mapping"]]


def _roles(spans: tuple[Span, ...], start: int, end: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(span.role for span in spans if start < span.end and end > span.start))
