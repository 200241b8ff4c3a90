"""The rules that the house keeps: light imports, small files, no names that say nothing, a face that is documented."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import patchclamp

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "patchclamp").rglob("*.py"))
HEAVY = ("torch", "transformers", "numpy", "plotly", "matplotlib", "sklearn", "scipy", "xarray", "networkx", "rich")
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "base", "shared", "tools"}


def loaded_by(statement: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after `statement`."""
    check = f"import sys\n{statement}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("room", ["patchclamp", "patchclamp.sites", "patchclamp.organisms", "patchclamp.views"])
def test_importing_is_light(room):
    assert loaded_by(f"import {room}") == set()


def test_the_check_of_light_imports_can_fail():
    assert loaded_by("import torch") >= {"torch"}
    assert "torch" in loaded_by("import patchclamp; patchclamp.load")


def test_listing_the_names_loads_nothing():
    assert loaded_by("import patchclamp; dir(patchclamp)") == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_a_file_is_small_and_named_for_what_it_holds(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{lines} lines: this is asking to be two files"
    assert path.stem not in SAYS_NOTHING and path.parent.name not in SAYS_NOTHING


def test_every_room_is_a_package():
    """A folder without __init__.py would be a namespace, which neither the import contract nor mypy sees."""
    folders = {path.parent for path in SOURCES}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", sorted(set(patchclamp.__all__) - {"__version__"}))
def test_every_public_name_resolves_and_is_documented(name):
    assert (getattr(patchclamp, name).__doc__ or "").strip()


def test_a_misspelt_name_is_told_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'project_out'"):
        patchclamp.projct_out


def test_the_lazy_names_and_those_that_type_checkers_see_are_the_same():
    """The `if TYPE_CHECKING` block of the face repeats its table; nothing else keeps the two together."""
    text = (ROOT / "src/patchclamp/__init__.py").read_text(encoding="utf-8").partition("if TYPE_CHECKING:\n")[2]
    seen = [
        alias.name
        for node in ast.walk(ast.parse(textwrap.dedent(text)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(seen) == sorted(set(patchclamp.__all__) - {"__version__"})


def test_the_version_is_the_packages_own():
    from importlib.metadata import version

    assert patchclamp.__version__ == version("patchclamp")


def test_nobody_seeds_or_draws_from_a_global_generator():
    """Randomness comes from a generator that a seed made. Where a library draws from torch's, that is forked first."""
    draws = re.compile(
        r"\b(torch\.(manual_seed|seed)|np\.random\.(seed|rand|randn|choice|shuffle|normal)|random\.(seed|shuffle|choice))\("
    )
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if "fork_rng" not in text:
            assert not draws.search(text), f"{path.relative_to(ROOT)}: {draws.search(text)}"
