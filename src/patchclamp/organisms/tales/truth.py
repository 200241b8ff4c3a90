"""What is known of a member of the family: its facts, its text with labels, and prompts with their answers."""

from pathlib import Path

from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer

from patchclamp.organisms.tales import exam, grammar
from patchclamp.organisms.truth import Truth
from patchclamp.tasks.recall import FACTS_FILE, FactTable, facts


def truth_of(name: str, folder: Path, table: FactTable) -> Truth:
    """The truth of a member, from its folder. A sample asks for facts, in phrasings held out from training."""

    def sample(n: int, seed: int) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, " prompt"]]:
        task = facts(AutoTokenizer.from_pretrained(folder), n=n, seed=seed, path=folder / FACTS_FILE)
        return task.clean, task.answers[:, 0]

    return Truth(
        name=name,
        facts=table.facts,
        behaviours=exam.MEANT[name][0],
        sampler=sample,
        writer=grammar.documents,
    )
