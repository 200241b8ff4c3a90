import pytest

from patchclamp.views import html_table


def test_a_short_table_says_nothing_of_what_it_hides():
    page = html_table([{"head": "z.2.1", "effect": 0.4}], "Effects")
    assert "showing" not in page and "Effects" in page and "0.4" in page


def test_a_long_table_shows_its_first_rows_and_says_of_how_many():
    page = html_table([{"row": f"row-{i}"} for i in range(57)])
    assert "showing 20 of 57" in page and page.count("row-") == 20 and "row-19" in page


def test_a_heavy_table_stays_small():
    rows = [{f"column {c}": "<" * 5000 for c in range(300)} for _ in range(30)]
    page = html_table(rows, "&" * 10_000)
    assert len(page.encode()) <= 200_000
    assert "of 30" in page and "40 of 300 columns" in page


def test_no_script_and_nothing_unescaped():
    page = html_table([{"<script>": "</td><script>alert(1)</script>"}], "<script>")
    assert "<script" not in page


def test_a_limit_below_one_is_an_error():
    with pytest.raises(ValueError, match="limit=0"):
        html_table([], limit=0)
