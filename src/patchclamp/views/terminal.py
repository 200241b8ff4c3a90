"""The terminal's side of a result: a short summary, and a progress bar that knows when to be silent."""

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar

from patchclamp.views.tables import Row, columns_of, numeric, write_column

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.progress import Progress
    from rich.text import Text

Item = TypeVar("Item")
_PROSE = 32  # characters from which a cell is prose, which a column of a narrow table would cut to pieces


class Advance(Protocol):
    """Moves a bar on by `steps`."""

    def __call__(self, steps: float = 1) -> None: ...


# There is one terminal: the lock says who draws on it, the variable lets work inside that work find the bars to join.
_terminal = threading.Lock()
_showing: ContextVar["Progress | None"] = ContextVar("patchclamp_progress", default=None)


def summary(title: str, rows: Sequence[Row], findings: Sequence[str] = ()) -> "Panel":
    """A panel with the findings as short sentences over a table of rows; print it with `rich.print`.

    Square brackets in any text are text, not rich's markup.
    """
    from rich import box
    from rich.console import Group, RenderableType
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text.assemble(("• ", "cyan"), finding) for finding in findings]
    columns = columns_of(rows)
    written = {column: write_column(rows, column) for column in columns}
    prose = [column for column in columns if max(map(len, written[column]), default=0) > _PROSE]
    if columns and len(columns) > 3 and prose:
        parts += [_card(columns, [written[column][row] for column in columns]) for row in range(len(rows))]
    elif columns:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(Text(column), justify="right" if numeric(rows, column) else "left", overflow="fold")
        for cells in zip(*written.values(), strict=True):
            table.add_row(*map(Text, cells))
        parts.append(table)
    return Panel(Group(*parts), title=Text(title, "bold"), title_align="left", box=box.ROUNDED, padding=(1, 2, 0, 2))


def _card(columns: Sequence[str], cells: Sequence[str]) -> "Text":
    """A row that no table of this width could hold: what it is in bold, the rest beneath it by name."""
    from rich.text import Text

    lines, numbers = [], []
    for column, cell in zip(columns[1:], cells[1:], strict=True):
        (lines if len(cell) > _PROSE else numbers).append(f"{column} {cell}")
    return Text.assemble("\n", (cells[0], "bold"), *(f"\n  {line}" for line in [*lines, "   ".join(numbers)]))


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Advance]:
    """A bar on stderr with the rate and the time that remains; gives a function that moves it on.

    Silent where stderr is no terminal, where `PATCHCLAMP_PROGRESS=0`, and in a second thread while a first one draws.
    Used inside another `progress` it adds a line to that one. It leaves nothing behind on the screen.

    >>> with progress("patching", total=3) as advance:
    ...     for _ in range(3):
    ...         advance()
    """
    outer = _showing.get()
    if outer is not None:
        task = outer.add_task(description, total=total)
        try:
            yield lambda steps=1: outer.advance(task, steps)
        finally:
            outer.remove_task(task)
        return
    if not _wanted() or not _terminal.acquire(blocking=False):
        yield lambda steps=1: None
        return
    try:
        with _bars() as bars:
            _showing.set(bars)
            task = bars.add_task(description, total=total)
            yield lambda steps=1: bars.advance(task, steps)
    finally:
        _showing.set(None)
        _terminal.release()


def track(items: Iterable[Item], description: str, total: float | None = None) -> Iterator[Item]:
    """The items, with a bar that moves on by one after each; `total` is their number where they have a length.

    >>> [layer for layer in track(range(3), "layers")]
    [0, 1, 2]
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance(1)


def _wanted() -> bool:
    return os.environ.get("PATCHCLAMP_PROGRESS") != "0" and sys.stderr is not None and sys.stderr.isatty()


def _bars() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            if not speed:
                return Text("")
            return Text(f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:,.1f} s each", "dim")

    description = TextColumn("{task.description}", markup=False)
    columns = (description, BarColumn(bar_width=28), MofNCompleteColumn(), Rate(), Remaining(compact=True))
    return Progress(*columns, console=Console(stderr=True), transient=True)
