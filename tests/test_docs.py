"""The examples of the documentation and of the README run: every ```python block, in order, one namespace a page.

A block that cannot run in a test says why: ```python notest: needs a GPU
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
_BLOCK = re.compile(r"^(?P<indent> *)```python(?P<tag>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One example: its line in the page, what follows the word python, and its code."""

    line: int
    tag: str
    code: str


def blocks_of(text: str) -> list[Block]:
    """The python blocks of a page of Markdown."""
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        indent = match["indent"]
        code = "".join(row.removeprefix(indent) for row in match["code"].splitlines(keepends=True))
        found.append(Block(line, match["tag"].strip(), code))
    return found


def run_page(text: str, name: str) -> int:
    """Run a page's blocks; returns how many ran. An error's traceback points at the page's own line."""
    namespace = {"__name__": "__main__"}
    ran = 0
    for block in blocks_of(text):
        if block.tag:
            reason = re.fullmatch(r"notest: *(\S.*)", block.tag)
            assert reason, f"{name}, line {block.line}: write 'python notest: the reason', not {block.tag!r}"
            continue
        exec(compile("\n" * block.line + block.code, name, "exec"), namespace)
        ran += 1
    return ran


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page.read_text(encoding="utf-8"), str(page))


def test_a_broken_example_fails_at_its_line():
    page = "# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 1\nassert x == 2\n```\n"
    with pytest.raises(AssertionError) as failed:
        run_page(page, "page.md")
    assert failed.traceback[-1].lineno == 10  # counted from 0


def test_a_block_is_left_out_only_with_a_reason():
    assert run_page("```python notest: needs a GPU\nnothing\n```\n", "page.md") == 0
    with pytest.raises(AssertionError, match="line 1"):
        run_page("```python notest\nnothing\n```\n", "page.md")


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+\.(?:md|py|html))\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_lists_every_study_and_no_other():
    from patchclamp import studies

    listed = re.findall(r"^\| `([^`]+)` \| (.+?) \| `([^`]+)` \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [row[:2] for row in listed] == [(row["study"], row["paper"]) for row in studies.rows()]
    assert [row[2] for row in listed] == [studies.load(row["study"]).organism for row in studies.rows()]
