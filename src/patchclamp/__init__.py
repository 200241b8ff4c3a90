"""patchclamp: record, patch and clamp the activations of neural networks, and turn that into explanations.

    import patchclamp as pc

    model = pc.load("organism:tales")                       # or "gpt2", "./my-checkpoint"; pc.wrap(any_module)
    run = model.run(prompts, record="resid_post.*")
    out = model.run(prompts, do=[pc.patch("z.2.1", other_run, pos=-1)])

Importing this costs next to nothing: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "Keep": "recording",
    "Model": "model",
    "Norm": "recording",
    "Project": "recording",
    "Recording": "recording",
    "Site": "sites",
    "SiteError": "sites",
    "Task": "tasks",
    "TopK": "recording",
    "ablate": "interventions",
    "add": "interventions",
    "clamp": "interventions",
    "edit": "interventions",
    "keep": "recording",
    "load": "loading",
    "patch": "interventions",
    "project_out": "interventions",
    "record": "store",
    "scale": "interventions",
    "span": "positions",
    "wrap": "model",
}
_ROOMS = (
    "circuits",
    "dictionaries",
    "editing",
    "evaluation",
    "interventions",
    "investigate",
    "metrics",
    "organisms",
    "patching",
    "probes",
    "sites",
    "steering",
    "store",
    "studies",
    "tasks",
    "views",
)

__all__ = ["__version__", *_NAMES, *_ROOMS]  # noqa: PLE0604, RUF100


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"patchclamp.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"patchclamp.{name}")
    import difflib

    near = difflib.get_close_matches(name, [*_NAMES, *_ROOMS], 1)
    raise AttributeError(f"patchclamp has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from patchclamp import (
        circuits,
        dictionaries,
        editing,
        evaluation,
        interventions,
        investigate,
        metrics,
        organisms,
        patching,
        probes,
        sites,
        steering,
        store,
        studies,
        tasks,
        views,
    )
    from patchclamp.interventions import ablate, add, clamp, edit, patch, project_out, scale
    from patchclamp.loading import load
    from patchclamp.model import Model, wrap
    from patchclamp.positions import span
    from patchclamp.recording import Keep, Norm, Project, Recording, TopK, keep
    from patchclamp.sites import Site, SiteError
    from patchclamp.store import record
    from patchclamp.tasks import Task
