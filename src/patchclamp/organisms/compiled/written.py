"""The compiled programs as organisms: `build("compiled:sort+superposed")`, and what is true of it."""

from functools import cache
from pathlib import Path

from patchclamp.organisms.compiled.compile import SUFFIX, CompiledModel, CompiledTruth, Compression, compile
from patchclamp.organisms.compiled.programs import program


def build(name: str) -> CompiledModel:
    """The network called `name`: "compiled:" and a program, and behind it "+rotated" or "+superposed"."""
    plain, plus, suffix = name.removeprefix("compiled:").partition("+")
    compressions: dict[str, Compression | None] = {known: kind for kind, known in SUFFIX.items()}
    return compile(program(plain), compression=compressions[plus + suffix])


@cache
def truth(name: str, folder: Path) -> CompiledTruth:
    """Its circuit, alignment and features."""
    return build(name).truth
