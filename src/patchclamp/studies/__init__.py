"""Papers' claims, measured: each study is one file that states what a paper claims and says whether it holds here.

    studies.names()                                    # every study; nothing of them is imported
    verdict = studies.run("patching-best-practices")   # on the network that the study names, whose truth is known
    studies.run("patching-best-practices", model="random").holds      # False: untrained weights have learnt nothing
    verdict.report("verdict.html")

How to write one: docs/studies.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from patchclamp.studies.catalogue import load as load
from patchclamp.studies.catalogue import names as names
from patchclamp.studies.catalogue import rows as rows

if TYPE_CHECKING:
    from patchclamp.studies.lab import Lab, NotApplicable
    from patchclamp.studies.measured import Measured
    from patchclamp.studies.runner import run
    from patchclamp.studies.study import Study
    from patchclamp.studies.verdict import Outcome, Verdict

_HOME = {
    "Lab": "lab",
    "Measured": "measured",
    "NotApplicable": "lab",
    "Outcome": "verdict",
    "Study": "study",
    "Verdict": "verdict",
    "run": "runner",
}

__all__ = ["Lab", "Measured", "NotApplicable", "Outcome", "Study", "Verdict", "load", "names", "rows", "run"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"patchclamp.studies has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"patchclamp.studies.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
