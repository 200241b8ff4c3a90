import numpy as np
import torch

from patchclamp.views.tables import columns_of, table_html, write, write_column


def test_scalars_of_numpy_and_torch_are_numbers():
    assert write(np.float32(0.25)) == write(torch.tensor(0.25)) == "0.25"
    assert write(np.bool_(True)) == "yes" and write(np.int64(-3)) == "−3"


def test_intervals_and_lists_of_words():
    assert write((0.3, 0.53)) == "[0.3, 0.53]" and write(["z.2.1", "z.3.0"]) == "z.2.1, z.3.0"


def test_a_column_has_one_number_of_decimals_unless_that_would_round_a_value_away():
    assert write_column([{"p": 0.62}, {"p": 0.0315}, {}, {"p": 0}], "p") == ["0.620", "0.032", "–", "0"]
    assert write_column([{"p": 0.62}, {"p": 3e-9}], "p") == ["0.62", "3e−09"]
    assert write_column([{"p": 1.5}, {"p": float("inf")}], "p") == ["1.50", "∞"]


def test_columns_are_the_union_of_the_rows_and_gaps_are_dashes():
    rows = [{"a": 1}, {"b": "x", "a": 2}]
    assert columns_of(rows) == ["a", "b"]
    page = table_html(rows, columns_of(rows))
    assert page.count("<th ") == 2 and page.count("<td") == 4 and "<td>–</td>" in page


def test_cells_and_headings_are_escaped():
    page = table_html([{"<script>": "<img src=x onerror=alert(1)>"}], ["<script>"])
    assert "<script>" not in page and "<img" not in page and "&lt;img" in page
