import io
import threading

import pytest
from rich.console import Console

from patchclamp.views import progress, summary, track
from patchclamp.views import terminal as terminal_module


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def attach(monkeypatch):
    """Puts a terminal behind stderr, when called: pytest sets its own stderr between a fixture and its test."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("PATCHCLAMP_PROGRESS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def attached(stream):
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return attached


def test_the_summary_shows_findings_and_rows_and_reads_no_markup():
    console = Console(file=io.StringIO(), width=100)
    console.print(summary("IOI [bold]", [{"head": "z.2.1", "effect": 0.62}], ["Heads [red]carry[/red] it."]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(part in text for part in ("IOI [bold]", "[red]carry[/red]", "z.2.1", "0.62", "effect"))


def test_a_summary_without_rows_or_findings_is_a_title():
    console = Console(file=io.StringIO(), width=60)
    console.print(summary("Nothing", []))
    assert "Nothing" in console.file.getvalue()  # type: ignore[attr-defined]


def test_progress_draws_on_a_terminal(attach, monkeypatch):
    stderr, stdout = attach(Terminal()), Terminal()
    monkeypatch.setattr("sys.stdout", stdout)
    with progress("patching [z]", total=4) as advance:
        for _ in range(4):
            advance()
    assert "patching [z]" in stderr.getvalue() and "4/4" in stderr.getvalue()
    assert stdout.getvalue() == ""


@pytest.mark.parametrize("reason", ["no terminal", "switched off"])
def test_progress_is_silent(attach, monkeypatch, reason):
    stream = attach(io.StringIO() if reason == "no terminal" else Terminal())
    if reason == "switched off":
        monkeypatch.setenv("PATCHCLAMP_PROGRESS", "0")
    assert list(track(range(3), "layers")) == [0, 1, 2]
    assert stream.getvalue() == ""


def test_inner_progress_joins_the_outer_and_leaves_it_standing(attach):
    stderr = attach(Terminal())
    with progress("outer", total=2) as advance:
        for _ in range(2):
            assert list(track(iter("ab"), "inner")) == ["a", "b"]
            advance()
    assert "outer" in stderr.getvalue() and "inner" in stderr.getvalue() and "2/2" in stderr.getvalue()


def test_a_second_thread_is_silent_and_the_first_goes_on(attach):
    stderr = attach(Terminal())
    seen = []
    with progress("first", total=1) as advance:
        thread = threading.Thread(target=lambda: seen.extend(track(range(3), "second")))
        thread.start()
        thread.join()
        advance()
    assert seen == [0, 1, 2] and "second" not in stderr.getvalue()


def test_the_terminal_is_free_again_after_an_error_and_after_a_broken_loop(attach):
    attach(Terminal())
    with pytest.raises(KeyboardInterrupt), progress("interrupted"):
        raise KeyboardInterrupt
    for _ in track(range(3), "broken"):
        break
    assert not terminal_module._terminal.locked()
    assert terminal_module._showing.get() is None
