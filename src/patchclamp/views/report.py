"""One self-contained HTML file out of plain parts: prose, verdicts, figures, tables, code.

The page needs no network and says so to the browser (a content security policy that allows none): plotly's script is
inlined once, figures are JSON which is drawn when it scrolls into view, fonts are the reader's own.
"""

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from patchclamp.views.canvas import TITLE_PIXELS
from patchclamp.views.palette import CHROME, DIVERGING, SEQUENTIAL
from patchclamp.views.tables import Row, columns_of, table_html, write

if TYPE_CHECKING:
    import plotly.graph_objects as go

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_UNBROKEN_ROWS = 16  # a longer table may go over to the next printed page


@dataclass(frozen=True)
class Paragraph:
    """Prose. Text between backticks is set as code; all else is text as it stands."""

    text: str


@dataclass(frozen=True)
class Plot:
    """A plotly figure, what it shows in a sentence for readers who cannot see it, and a caption.

    The figure's own title becomes the heading above it, where it can wrap on a narrow page.
    """

    figure: "go.Figure"
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of plain values under a caption; columns are the union of the rows' keys unless given."""

    rows: Sequence[Row]
    caption: str
    columns: Sequence[str] | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim and whether it holds, with what it rests on: `{"measured": 0.93, "control": 0.12}`."""

    claim: str
    holds: bool
    evidence: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Code:
    """Source to copy, set as it stands."""

    source: str
    caption: str = ""


@dataclass(frozen=True)
class Details:
    """Parts behind one line that opens; printed open."""

    summary: str
    parts: Sequence["Part"]


Part: TypeAlias = Paragraph | Plot | Table | Verdict | Code | Details


@dataclass(frozen=True)
class Section:
    """A heading and what follows it."""

    heading: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    """A whole page: title, key facts (model, task, date, versions), findings in short sentences, sections.

    >>> page = Report("IOI on tales", sections=[Section("Behaviour", [Paragraph("The model gives `Mary`.")])])
    >>> "<code>Mary</code>" in page.html()
    True
    """

    title: str
    subtitle: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    findings: Sequence[str] = ()
    sections: Sequence[Section] = ()

    def html(self) -> str:
        """The page as text. Raises `TypeError` for a part that is none of the parts above."""
        return _Page(self).write()

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all, and return where it is; the folder is made if it is missing."""
        path = Path(path)
        page = self.html()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path


class _Page:
    """One writing of a report: the counters of figures and tables, and the anchors already given."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.figures = 0
        self.tables = 0
        self.anchors: set[str] = set()

    def write(self) -> str:
        report = self.report
        anchors = [self.anchor(section.heading) for section in report.sections]
        links = "".join(
            f'<li><a href="#{anchor}">{_text(section.heading)}</a></li>\n'
            for anchor, section in zip(anchors, report.sections, strict=True)
        )
        nav = f'<nav aria-label="Contents"><p>Contents</p><ol>\n{links}</ol></nav>' if len(anchors) > 1 else ""
        body = "\n".join(
            f'<section id="{anchor}" aria-labelledby="{anchor}-heading">\n'
            f'<h2 id="{anchor}-heading">{_text(section.heading)}</h2>\n{self.parts(section.parts)}\n</section>'
            for anchor, section in zip(anchors, report.sections, strict=True)
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="patchclamp">\n'
            f"<title>{_text(report.title)}</title>\n<style>\n{_asset('report.css')}</style>\n</head>\n<body>\n"
            f'<a class="skip" href="#content">Skip to the content</a>\n<div class="page">\n{self.header()}\n{nav}\n'
            f'<main id="content">\n{self.findings()}\n{body}\n</main>\n</div>\n{self.scripts()}</body>\n</html>\n'
        )

    def header(self) -> str:
        report = self.report
        facts = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(write(v))}</dd></div>\n" for k, v in report.facts.items())
        return (
            f"<header>\n<h1>{_inline(report.title)}</h1>\n"
            + (f'<p class="subtitle">{_inline(report.subtitle)}</p>\n' if report.subtitle else "")
            + (f'<dl class="facts">\n{facts}</dl>\n' if facts else "")
            + "</header>"
        )

    def findings(self) -> str:
        if not self.report.findings:
            return ""
        items = "".join(f"<li>{_inline(finding)}</li>\n" for finding in self.report.findings)
        heading = '<h2 id="findings">Findings</h2>'
        return f'<section class="findings" aria-labelledby="findings">\n{heading}\n<ul>\n{items}</ul></section>'

    def parts(self, parts: Sequence[Part]) -> str:
        return "\n".join(self.part(part) for part in parts)

    def part(self, part: Part) -> str:
        match part:
            case Paragraph(text):
                return f"<p>{_inline(text)}</p>"
            case Plot():
                return self.plot(part)
            case Table():
                return self.table(part)
            case Verdict():
                return _verdict(part)
            case Code(source, caption):
                said = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
                return f'<figure class="code"><pre tabindex="0"><code>{_text(source)}</code></pre>{said}</figure>'
            case Details(summary, inside):
                return f"<details><summary>{_inline(summary)}</summary>\n{self.parts(inside)}\n</details>"
        kinds = "Paragraph, Plot, Table, Verdict, Code or Details"
        raise TypeError(
            f"a report's part is a {kinds}, not {type(part).__name__}; wrap a plotly figure in Plot(figure, alt)"
        )

    def plot(self, plot: Plot) -> str:
        if not plot.alt.strip():
            raise ValueError("a Plot needs `alt`: one sentence that says what the figure shows")
        self.figures += 1
        name = f"figure-{self.figures}"
        drawing = json.loads(str(plot.figure.to_json()))
        title = _taken_title(drawing)
        heading = f'<p class="figure-title">{_inline(title)}</p>' if title else ""
        meta = drawing["layout"].get("meta") or {}
        size = f"min-width:{int(meta.get('min_width', 0))}px;height:{int(drawing['layout'].get('height', 420))}px"
        if "max_width" in meta:
            size += f";max-width:{int(meta['max_width'])}px"
        count = f'<span class="count">Figure {self.figures}.</span>'
        return (
            f'<figure class="drawing" id="{name}">{heading}<div class="scroll" tabindex="0" role="group" '
            f'aria-label="Figure {self.figures}, scrolls sideways on a narrow screen">'
            f'<div class="plot" data-figure="{name}-data" role="img" aria-label="{_text(plot.alt)}" style="{size}">'
            f"<noscript>{_text(plot.alt)}</noscript></div></div>"
            f"<figcaption>{count} {_inline(plot.caption or plot.alt)}</figcaption>"
            f'<script type="application/json" id="{name}-data">{_json(drawing)}</script></figure>'
        )

    def table(self, table: Table) -> str:
        self.tables += 1
        columns = list(table.columns) if table.columns is not None else columns_of(table.rows)
        unknown = [column for column in columns if table.rows and not any(column in row for row in table.rows)]
        if unknown:
            raise ValueError(f"table {table.caption!r}: no row has {unknown}; the rows have {columns_of(table.rows)}")
        count = f'<span class="count">Table {self.tables}.</span>'
        caption = f'<span class="told">{count} {_inline(table.caption)}</span>'
        kind = "scroll table short" if len(table.rows) <= _UNBROKEN_ROWS else "scroll table"
        label = f'tabindex="0" role="group" aria-label="Table {self.tables}"'
        return f'<div class="{kind}" {label}>{table_html(table.rows, columns, caption)}</div>'

    def anchor(self, heading: str) -> str:
        plain = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        # "s-" keeps a heading such as "Findings" or "Figure 1" from meeting the page's own names.
        name, number = f"s-{plain}", 2
        while name in self.anchors:
            name, number = f"s-{plain}-{number}", number + 1
        self.anchors.add(name)
        return name

    def scripts(self) -> str:
        if not self.figures:
            return f"<script>\n{_asset('report.js')}</script>\n"
        from plotly.offline import get_plotlyjs

        plotly = get_plotlyjs().replace("</script", "<\\/script")
        palette = _json({"diverging": DIVERGING, "sequential": SEQUENTIAL, "chrome": CHROME})
        return (
            f'<script type="application/json" id="palette">{palette}</script>\n'
            f'<script id="plotly">{plotly}</script>\n<script>\n{_asset("report.js")}</script>\n'
        )


def _verdict(verdict: Verdict) -> str:
    kind, said = ("holds", "holds") if verdict.holds else ("fails", "does not hold")
    evidence = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(write(v))}</dd></div>" for k, v in verdict.evidence.items())
    listed = f"<dl>{evidence}</dl>" if evidence else ""
    return (
        f'<div class="verdict {kind}"><span class="badge">{said}</span>'
        f'<div class="claim"><p>{_inline(verdict.claim)}</p>{listed}</div></div>'
    )


def _taken_title(drawing: dict[str, Any]) -> str:
    """The figure's title as plain text, taken out of its layout along with the room that it had."""
    layout = drawing["layout"]
    title = (layout.pop("title", None) or {}).get("text", "") or ""
    height, margin = layout.get("height"), layout.get("margin") or {}
    if title and height and margin.get("t", 0) > TITLE_PIXELS:
        layout["height"] = height - TITLE_PIXELS
        margin["t"] -= TITLE_PIXELS
        for owner in (*drawing["data"], layout.get("coloraxis", {})):
            bar = owner.get("colorbar", {})
            if bar.get("yref") == "container":
                bar["y"] = 1 - ((1 - bar["y"]) * height - TITLE_PIXELS) / layout["height"]
    return html.unescape(re.sub(r"</?(?:b|i|em|sub|sup|span)(?: [^>]*)?>", "", title.replace("<br>", " ")))


def _text(text: str) -> str:
    return html.escape(str(text), quote=True)


def _inline(text: str) -> str:
    """Escaped, `code` set as code, and a percent sign kept on the line of its number."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text)))


def _json(data: object) -> str:
    """JSON that cannot end the script element it stands in, whatever is in its strings."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("patchclamp.views").joinpath(name).read_text(encoding="utf-8")
