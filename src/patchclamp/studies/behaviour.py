"""The behaviour that a study of circuits is about: what this model can do, as a task."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.studies.lab import Lab, NotApplicable
from patchclamp.studies.measured import Measured
from patchclamp.tasks import Task, ioi

REPEATS, REPEATED = 16, "the task: to repeat random tokens"
"""Tokens of a prompt of `repeats`, and what a verdict says of it."""


def task_of(lab: Lab) -> Task:
    """What the model is asked to do: induction on the hand-written induction network, indirect object identification on
    a language model whose tokenizer has names, and on any other the repetition of its own tokens.
    """
    n = 256 if lab.full else 64
    if "hand_induction" in lab.truth.behaviours:
        from patchclamp.organisms.compiled.hand_induction import hand_induction_task

        return hand_induction_task(n, lab.seed)
    try:
        return task_on(lab.model, ioi, n=n, seed=lab.seed)
    except NotApplicable:
        lab.used.add(REPEATED)
        return repeats(lab.model, n=n, seed=lab.seed)


def task_on(model: Model, make: Callable[..., Task], **options: Any) -> Task:
    """A built-in task for this model; `NotApplicable` where it has no tokenizer, or one without the task's words."""
    if model.tokenizer is None:
        raise NotApplicable("needs a model with a tokenizer, since its prompts are text")
    try:
        return make(model, **options)
    except ValueError as reason:
        why = str(reason).partition(". Write prompts")[0]  # prompts of one's own are no way out of a study
        raise NotApplicable(f"needs a tokenizer that has the task's words ({why})") from reason


def repeats(model: Model, n: int, seed: int) -> Task:
    """Random tokens, then some of them again; the answer is what followed the first time.

    For models that know no words of ours: `tasks.induction` in tokens. Corrupted: the answer and another token change
    places among the first, which makes that one the answer. Raises `NotApplicable` for what is no language model.
    """
    if model.anatomy.head != "tokens":
        raise NotApplicable("needs a language model")
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    known = [token for token in range(len(model.embeddings.weight)) if token not in special]
    if len(known) < REPEATS:
        raise NotApplicable(f"needs a vocabulary of {REPEATS} tokens or more")
    rng, rows = random.Random(seed), []
    for _ in range(n):
        length = rng.randint(9, 12)
        first, again = rng.sample(known, length), REPEATS - length
        start = rng.randrange(length - again)
        at = start + again
        other = rng.choice([place for place in range(length) if not start <= place <= at])
        swapped = [*first]
        swapped[at], swapped[other] = first[other], first[at]
        rows.append(([*first, *first[start:at]], [*swapped, *first[start:at]], first[at], first[other]))
    clean, corrupt, answers, wrong = zip(*rows, strict=True)
    return Task.from_tokens(clean=clean, corrupt=corrupt, answers=answers, wrong=wrong, name="repeated tokens")


def answer_logits(
    model: Model, task: Task, side: Literal["clean", "corrupt"], do: Sequence[Intervention] = ()
) -> Float[Tensor, "prompt vocab"]:
    """Logits where each prompt is answered, in float64."""
    logits = model.run(getattr(task, side), attention_mask=task.mask, do=do).logits
    if logits is None:
        raise TypeError(f"{model.name} returns no logits")
    return task.at_answer(logits).double()


def answers(lab: Lab, task: Task | None = None) -> Measured:
    """Share of prompts whose answer has the highest logit of all; control: the same on the corrupted prompts."""
    task = lab.once(task_of) if task is None else task
    right, control = (metrics.top1(answer_logits(lab.model, task, side), task) for side in ("clean", "corrupt"))
    return Measured.share(right, control=control)
