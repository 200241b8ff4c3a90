"""Rows of plain values to table cells: which columns there are, how a value is written, which side it stands on."""

import html
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TypeGuard

Row = Mapping[str, object]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every key of every row, in the order of first appearance.

    >>> columns_of([{"head": "z.2.1", "effect": 0.4}, {"head": "z.3.0", "control": 0.0}])
    ['head', 'effect', 'control']
    """
    return list(dict.fromkeys(str(key) for row in rows for key in row))


def is_number(value: object) -> bool:
    """A real number that is not a truth value, numpy's and torch's scalars among them."""
    plain = value.item() if _is_scalar(value) else value  # type: ignore[attr-defined]
    return isinstance(plain, Real) and not isinstance(plain, bool)


def write(value: object) -> str:
    """A value as a reader wants it: four significant digits, a true minus, yes and no, a dash for what is missing.

    >>> write(0.123456), write(-2.0), write(1200000), write(True), write(None), write(float("nan"))
    ('0.1235', '−2', '1,200,000', 'yes', '–', '–')
    """
    if _is_scalar(value):
        value = value.item()  # type: ignore[attr-defined]
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}".replace("-", "−") if abs(int(value)) >= 10_000 else str(int(value)).replace("-", "−")
    if isinstance(value, Real):
        number = float(value)
        return "–" if math.isnan(number) else f"{number:.4g}".replace("-", "−").replace("inf", "∞")
    if isinstance(value, tuple | list):
        inside = ", ".join(write(item) for item in value)
        return f"[{inside}]" if all(is_number(item) for item in value) else inside
    return str(value)


def write_column(rows: Sequence[Row], column: str) -> list[str]:
    """The cells of one column: numbers to one number of decimals, so that they can be compared down the page.

    Where that would round a value away each is written by itself, as is a cell that holds no finite number.

    >>> write_column([{"effect": 0.62}, {"effect": -0.0315}], "effect")
    ['0.620', '−0.032']
    """
    values = [row.get(column) for row in rows]
    plain = [value.item() if _is_scalar(value) else value for value in values]  # type: ignore[attr-defined]
    reals = [float(value) for value in plain if _is_finite_real(value)]
    largest = max(map(abs, reals), default=0.0)
    if not 1e-4 < largest < 1e6:
        return [write(value) for value in plain]
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    if any(value != 0 and abs(value) < 0.5 * 10**-decimals for value in reals):
        return [write(value) for value in plain]
    return [f"{value:.{decimals}f}".replace("-", "−") if _is_finite_real(value) else write(value) for value in plain]


def table_html(rows: Sequence[Row], columns: Sequence[str], caption: str = "", longest: int | None = None) -> str:
    """A `<table>` with column headings, everything escaped, numbers to the right; `caption` is HTML already.

    Cells longer than `longest` characters are cut, with an ellipsis.
    """
    written = {column: write_column(rows, column) for column in columns}
    kinds = {column: _kind(rows, column, written[column]) for column in columns}

    def cell(tag: str, column: str, text: str) -> str:
        cut = text if longest is None or len(text) <= longest else text[: longest - 1] + "…"
        return f"<{tag}{kinds[column]}>{html.escape(cut)}</{tag.split()[0]}>"

    head = "".join(cell('th scope="col"', column, column) for column in columns)
    body = "".join(
        "<tr>" + "".join(cell("td", column, written[column][i]) for column in columns) + "</tr>\n"
        for i in range(len(rows))
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _kind(rows: Sequence[Row], column: str, written: Sequence[str]) -> str:
    if numeric(rows, column):
        return ' class="number"'
    return ' class="long"' if max(map(len, written), default=0) > 32 else ""


def numeric(rows: Sequence[Row], column: str) -> bool:
    """Whether every value that is there is a number."""
    present = [row[column] for row in rows if row.get(column) is not None]
    return bool(present) and all(is_number(value) for value in present)


def _is_scalar(value: object) -> bool:
    """A number of numpy's or torch's, met by what it can do, since this room imports neither."""
    return getattr(value, "shape", None) == () and hasattr(value, "item")


def _is_finite_real(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, Integral) and math.isfinite(float(value))
