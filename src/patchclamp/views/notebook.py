"""Tables for notebooks: what result classes return from `_repr_html_`."""

import html
from collections.abc import Sequence

from patchclamp.views.tables import Row, columns_of, table_html

MAX_BYTES = 200_000
_MAX_COLUMNS = 40
_LONGEST_CELL = 200
_STYLE = (
    '<div style="overflow-x:auto;max-width:100%"><style scoped>.patchclamp-table table{border-collapse:collapse;'
    "font-variant-numeric:tabular-nums}.patchclamp-table caption{text-align:left;font-weight:600;padding:0 0 .4em}"
    ".patchclamp-table th,.patchclamp-table td{text-align:left;padding:.25em .9em .25em 0;"
    "border-bottom:1px solid rgba(128,132,140,.3)}.patchclamp-table .number{text-align:right}</style>"
    '<div class="patchclamp-table">'
)


def html_table(rows: Sequence[Row], caption: str = "", *, limit: int = 20) -> str:
    """The first `limit` rows as a static HTML table of at most 200 kB, which says how many of how many it shows.

    No script, no network, everything escaped. Columns are the union of the rows' keys, 40 at most; a cell is cut at 200
    characters. Raises `ValueError` for a limit below 1.

    >>> "showing 2 of 3" in html_table([{"a": 1}, {"a": 2}, {"a": 3}], limit=2)
    True
    """
    if limit < 1:
        raise ValueError(f"html_table shows at least one row; got limit={limit}")
    columns = columns_of(rows)
    shown = min(limit, len(rows))
    while True:
        page = _page(rows[:shown], columns, caption, len(rows))
        if len(page.encode()) <= MAX_BYTES or shown <= 1:
            return page
        shown //= 2


def _page(rows: Sequence[Row], columns: list[str], caption: str, total: int) -> str:
    notes = [f"showing {len(rows)} of {total}"] if len(rows) < total else []
    if len(columns) > _MAX_COLUMNS:
        notes.append(f"{_MAX_COLUMNS} of {len(columns)} columns")
    said = html.escape(caption if len(caption) <= 400 else caption[:399] + "…")
    if notes:
        said += f' <span style="font-weight:400;opacity:.7">({"; ".join(notes)})</span>'
    return _STYLE + table_html(rows, columns[:_MAX_COLUMNS], said.strip(), _LONGEST_CELL) + "</div></div>"
