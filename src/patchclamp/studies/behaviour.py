"""The behaviour that a study of circuits is about: what this model can do, as a task."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.tasks import Task, ioi


def task_of(lab: Lab) -> Task:
    """Induction on the hand-written induction network, indirect object identification on any language model."""
    n = 256 if lab.full else 64
    if "hand_induction" in lab.truth.behaviours:
        from patchclamp.organisms.compiled.hand_induction import hand_induction_task

        return hand_induction_task(n, lab.seed)
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since its prompts are text")
    return ioi(lab.model, n=n, seed=lab.seed)


def answer_logits(
    model: Model, task: Task, side: Literal["clean", "corrupt"], do: Sequence[Intervention] = ()
) -> Float[Tensor, "prompt vocab"]:
    """Logits where each prompt is answered, in float64."""
    logits = model.run(getattr(task, side), attention_mask=task.mask, do=do).logits
    if logits is None:
        raise TypeError(f"{model.name} returns no logits")
    return task.at_answer(logits).double()


def answers(lab: Lab) -> Measured:
    """Share of prompts whose answer has the highest logit of all; control: the same on the corrupted prompts."""
    task = lab.once(task_of)
    right, control = (metrics.top1(answer_logits(lab.model, task, side), task) for side in ("clean", "corrupt"))
    return Measured.share(right, control=control)
