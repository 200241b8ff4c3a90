"""Behaviours as data: `Task`, and the built-in tasks by template.

Each built-in is `f(model, n=64, seed=0) -> Task`, where `model` is a Model or a tokenizer; `by_name` looks one up.
"""

import difflib
from collections.abc import Callable

from patchclamp.tasks.baseline import Baseline as Baseline
from patchclamp.tasks.binding import colored_objects as colored_objects
from patchclamp.tasks.copying import docstring as docstring
from patchclamp.tasks.copying import induction as induction
from patchclamp.tasks.names import gendered_pronoun as gendered_pronoun
from patchclamp.tasks.names import ioi as ioi
from patchclamp.tasks.numbers import greater_than as greater_than
from patchclamp.tasks.recall import facts as facts
from patchclamp.tasks.task import Task as Task

BUILT_IN: dict[str, Callable[..., Task]] = {
    "ioi": ioi,
    "greater_than": greater_than,
    "induction": induction,
    "gendered_pronoun": gendered_pronoun,
    "colored_objects": colored_objects,
    "docstring": docstring,
    "facts": facts,
}


def names() -> list[str]:
    """Names of the built-in tasks."""
    return list(BUILT_IN)


def by_name(name: str) -> Callable[..., Task]:
    """The built-in task called `name` ("greater-than" is as good as "greater_than"); LookupError with the nearest
    otherwise.
    """
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    if key in BUILT_IN:
        return BUILT_IN[key]
    near = difflib.get_close_matches(key, BUILT_IN, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise LookupError(
        f"no built-in task is called '{name}'. {hint}There are: {', '.join(BUILT_IN)}; "
        "or write prompts of your own: Task.from_jsonl(path, model)."
    )
