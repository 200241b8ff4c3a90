import numpy as np
import pytest

from patchclamp.views import bars, lines, scatter


def bar_traces(figure):
    return [trace for trace in figure.data if trace.type == "bar"]


def whisker_ends(figure):
    return [
        np.stack([np.asarray(t.x) - np.asarray(t.error_x.array), np.asarray(t.x) + np.asarray(t.error_x.array)], 1)
        for t in figure.data
        if t.type == "scatter"
    ]


def test_the_control_stands_beside_its_result_and_whiskers_reach_their_ends():
    ends, control_ends = [[0.8, 1.0], [0.3, 0.5]], [[0.9, 1.0], [0.85, 0.99]]
    figure = bars(["none", "z.2.1"], [0.9, 0.4], ends, [0.95, 0.93], control_ends)
    result, control = bar_traces(figure)
    assert list(result.x) == [0.9, 0.4] and list(control.x) == [0.95, 0.93]
    gap = np.asarray(control.y) - np.asarray(result.y)
    assert (gap > result.width).all() and (gap < 1 - result.width).all()  # beside, and nearer than the next result
    for drawn, given in zip(whisker_ends(figure), (ends, control_ends), strict=True):
        np.testing.assert_allclose(drawn, given)


def test_an_interval_that_misses_its_value_is_drawn_as_it_is():
    figure = bars(["a"], [0.9], [[0.1, 0.5]])
    np.testing.assert_allclose(whisker_ends(figure)[0], [[0.1, 0.5]])


def test_bar_names_are_escaped_and_equal_names_stay_apart():
    figure = bars(["<b>x</b>", "<b>x</b>"], [1, -2])
    assert figure.layout.yaxis.ticktext == ("&lt;b&gt;x&lt;/b&gt;",) * 2
    assert list(bar_traces(figure)[0].x) == [1, -2]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bars(["a", "b"], [1.0]), "values: expected 2 numbers"),
        (lambda: bars(["a"], [np.nan]), "1 of 1 are not finite"),
        (lambda: bars(["a"], [1.0], [[2.0, 1.0]]), "low <= high"),
        (lambda: bars(["a"], [1.0], [0.1]), r"shape \[1, 2\], got \[1\]"),
        (lambda: bars(["a"], [1.0], control=[1.0, 2.0]), "control: expected 1 numbers"),
        (lambda: bars(["a"], [1.0], control_intervals=[[0, 1]]), "without control"),
        (lambda: lines([0, 1], {}), "give one"),
        (lambda: lines([0, 1], {"a": [1, 2]}, intervals={"b": [[0, 1], [0, 1]]}), "no curve"),
        (lambda: lines([0, 1], {"a": [1, 2, 3]}), "a: expected 2 numbers"),
        (lambda: scatter([0.0, 1.0], [0.0]), "values|y: expected 2 numbers"),
        (lambda: scatter([0.0, np.inf], [0.0, 1.0]), "x: 1 of 2 are not finite"),
        (lambda: scatter([0.0, 1.0], [0.0, 1.0], ["a"]), "1 labels for 2 points"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_scatter_writes_the_correlation_and_draws_the_line_of_equality():
    x = np.random.default_rng(0).normal(size=50)
    y = 0.5 * x + 0.1 * np.random.default_rng(1).normal(size=50)
    figure = scatter(x, y)
    line, points = figure.data
    assert list(line.x) == list(line.y) == list(figure.layout.xaxis.range) == list(figure.layout.yaxis.range)
    assert line.x[0] < min(x.min(), y.min()) and line.x[1] > max(x.max(), y.max())
    assert f"r = {np.corrcoef(x, y)[0, 1]:.3f}" in figure.layout.annotations[0].text
    assert "n = 50" in figure.layout.annotations[0].text and len(points.x) == 50


def test_scatter_claims_no_correlation_where_there_is_none_to_have():
    assert "undefined" in scatter([1.0, 1.0], [0.0, 2.0]).layout.annotations[0].text
    assert "undefined" in scatter([1.0], [2.0]).layout.annotations[0].text


def test_lines_keep_their_bands_and_the_control_its_own():
    x = np.array([0.0, 1.0, 2.0])
    band = np.array([[2.5, 3.5], [1.0, 2.0], [-1.0, 0.0]])
    control_band = np.array([[2.0, 4.0]] * 3)
    figure = lines(x, {"v": [3, 1.5, -0.5]}, intervals={"v": band}, control_interval=control_band)
    by_name = {trace.name: trace for trace in figure.data if trace.name}
    np.testing.assert_allclose(by_name["control"].y, control_band.mean(1))
    assert list(by_name["v"].y) == [3, 1.5, -0.5]
    filled = [trace for trace in figure.data if trace.fill == "toself"]
    for trace, ends in zip(filled, (control_band, band), strict=True):
        np.testing.assert_allclose(np.sort(trace.y), np.sort(ends.ravel()))
    assert by_name["v"].line.color != by_name["control"].line.color
