import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from patchclamp.views import Code, Details, Paragraph, Plot, Report, Section, Table, Verdict, attention, bars, heatmap

EVIL = "</script><script>alert('x')</script><img src=http://evil.example/x>"


class Tree(HTMLParser):
    """What a browser would see: elements in order, ids, and that every element is closed where it was opened."""

    VOID = frozenset({"meta", "br", "img", "link", "hr"})

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag, **attrs):
        return [a for t, a in self.seen if t == tag and all(a.get(k.rstrip("_")) == v for k, v in attrs.items())]


def effects():
    return xr.DataArray(np.array([[0.1, -0.4], [0.9, 0.0]]), dims=("layer", "pos"))


def full_report(text="plain"):
    figure = heatmap(effects(), title=text, x_labels=[text, " b"])
    return Report(
        text,
        text,
        facts={text: text, "n": 64},
        findings=[text, "Heads `z.2.1` carry it in 97 % of prompts."],
        sections=[
            Section(text, [Paragraph(text), Plot(figure, alt=text, caption=text), Verdict(text, True, {text: text})]),
            Section(
                text,
                [
                    Table([{text: text, "effect": 0.5}], caption=text),
                    Code(text, text),
                    Verdict(text, False),
                    Details(text, [Plot(attention(np.eye(2), [text, " "], title=text), alt=text)]),
                ],
            ),
        ],
    )


def own_parts(page):
    """The page without plotly's script, which names addresses that it never calls here."""
    kept, taken = re.subn(r'<script id="plotly">.*?</script>', "", page, flags=re.DOTALL)
    assert taken == 1
    return kept


def figure_data(page):
    return [
        json.loads(text)
        for text in re.findall(r'<script type="application/json" id="figure-\d+-data">(.*?)</script>', page)
    ]


def test_plotly_is_inlined_once_and_nothing_asks_the_network():
    page = full_report().html()
    assert page.count("plotly.js v") == 1
    own = own_parts(page)
    assert len(own) < 100_000
    calls = r"""\bsrc\s*=|\bhref\s*=\s*(?!["']#)|@import|\burl\(|\bfetch\(|\bimport\(|XMLHttpRequest|https?://"""
    assert not re.search(calls, own)
    (policy,) = [a["content"] for a in Tree(page).all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy


def test_a_report_without_figures_has_no_plotly():
    page = Report("t", sections=[Section("s", [Paragraph("p")])]).html()
    assert "plotly.js v" not in page and len(page) < 60_000


def test_evil_text_stays_text_everywhere():
    clean, evil = Tree(full_report().html()), Tree(full_report(EVIL).html())
    assert [tag for tag, _ in evil.seen] == [tag for tag, _ in clean.seen]
    assert len(evil.all("script")) == 5  # two figures, the palette, plotly, the page's own
    assert "".join(evil.text).count("alert('x')") > 10


def test_evil_text_in_a_figure_comes_back_as_it_was():
    page = Report("t", sections=[Section("s", [Plot(go.Figure(go.Bar(x=[EVIL], y=[1])), alt="a bar")])]).html()
    (drawing,) = figure_data(page)
    assert drawing["data"][0]["x"] == [EVIL]
    assert EVIL not in own_parts(page)


def test_headings_are_in_order_and_the_contents_lead_to_them():
    tree = Tree(full_report().html())
    assert [tag for tag, _ in tree.seen if tag in {"h1", "h2", "h3"}] == ["h1", "h2", "h2", "h2"]
    ids = [attrs["id"] for _, attrs in tree.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in tree.all("a") if a.get("class") != "skip"]
    assert links == ["s-plain", "s-plain-2"] and set(links) <= set(ids)


def test_headings_with_no_latin_letter_or_with_a_name_of_the_page_get_anchors_of_their_own():
    report = Report("t", sections=[Section(name, []) for name in ("結果", "回路", "Findings", "Figure 1", "content")])
    ids = [attrs["id"] for _, attrs in Tree(report.html()).seen if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_figures_speak_and_tables_have_captions():
    tree = Tree(full_report("what it shows").html())
    plots = tree.all("div", class_="plot")
    assert [(a["role"], a["aria-label"]) for a in plots] == [("img", "what it shows")] * 2
    assert len(tree.all("caption")) == len(tree.all("table")) == 1
    assert tree.all("html", lang="en") and any(a.get("name") == "viewport" for a in tree.all("meta"))
    with pytest.raises(ValueError, match="alt"):
        Report("t", sections=[Section("s", [Plot(heatmap(effects()), alt=" ")])]).html()


def test_the_title_of_a_figure_becomes_a_heading_and_gives_its_room_back():
    titled, bare = (heatmap(effects(), title=title) for title in ("A <b> & $c$ `z.1`", ""))
    page = Report("t", sections=[Section("s", [Plot(titled, "x"), Plot(bare, "x")])]).html()
    assert '<p class="figure-title">A &lt;b&gt; &amp; $c$ <code>z.1</code></p>' in page
    one, other = figure_data(page)
    assert one["layout"].keys() == other["layout"].keys() and one["layout"]["margin"] == other["layout"]["margin"]
    assert one["layout"]["height"] == other["layout"]["height"]
    assert one["data"][0]["colorbar"]["y"] == pytest.approx(other["data"][0]["colorbar"]["y"])
    assert titled.layout.title.text, "the caller's figure is left as it was"


def test_verdicts_say_in_words_what_came_out():
    text = "".join(Tree(full_report().html()).text)
    assert "does not hold" in text and re.search(r"(?<!not )holds", text)


def test_backticks_are_code_and_percent_signs_stay_with_their_number():
    page = full_report().html()
    assert "<code>z.2.1</code>" in page and "97\N{NO-BREAK SPACE}%" in page


def test_the_style_covers_dark_pages_phones_and_paper():
    page = own_parts(full_report().html())
    for query in (
        "prefers-color-scheme: dark",
        "max-width: 40rem",
        "@media print",
        "break-inside: avoid",
        "beforeprint",
    ):
        assert query in page


def test_a_wrong_part_and_a_wrong_column_are_errors():
    with pytest.raises(TypeError, match=r"Plot\(figure, alt\)"):
        Report("t", sections=[Section("s", [go.Figure()])]).html()  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"no row has .'efect'"):
        Report("t", sections=[Section("s", [Table([{"effect": 1}], "c", columns=["efect"])])]).html()


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    assert full_report().save(path) == path
    first = path.read_bytes()
    assert first.endswith(b"</html>\n") and [p.name for p in path.parent.iterdir()] == ["report.html"]

    def full_disk(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        Report("other").save(path)
    assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_the_same_report_is_the_same_page_and_lone_surrogates_do_not_stop_it(tmp_path):
    assert full_report().html() == full_report().html()
    assert Report("half \ud83d").save(tmp_path / "r.html").exists()


def test_bars_with_whiskers_survive_the_json():
    page = Report("t", sections=[Section("s", [Plot(bars(["a"], [1.0], [[0.5, 1.5]], [0.1]), "bars")])]).html()
    (drawing,) = figure_data(page)
    assert {trace["type"] for trace in drawing["data"]} == {"bar", "scatter"}


HEAVY = "plotly", "matplotlib", "rich", "torch", "xarray", "pandas"


def loaded_by(statement):
    code = f"import sys\n{statement}\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_room_loads_nothing_heavy_until_a_figure_is_made():
    light = "from patchclamp.views import Report, Section, Paragraph, progress, summary, html_table; Report('t').html()"
    assert not loaded_by(light)
    assert "plotly" in loaded_by("from patchclamp.views import bars; bars(['a'], [1.0])"), "the check itself can fail"


def test_an_unknown_name_is_an_attribute_error_that_lists_the_others():
    import patchclamp.views as views

    with pytest.raises(AttributeError, match="heatmap"):
        views.heat_map
    assert all(getattr(views, name) for name in views.__all__)
