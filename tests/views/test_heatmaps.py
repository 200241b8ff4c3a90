import numpy as np
import pytest
import xarray as xr

from patchclamp.views import attention, heatmap, to_matplotlib


def effects(rows=3, columns=4, dims=("layer", "pos"), seed=0):
    return xr.DataArray(np.random.default_rng(seed).normal(size=(rows, columns)), dims=dims)


def test_scale_reaches_equally_far_to_both_sides_of_the_centre():
    array = xr.DataArray([[0.2, -0.5], [1.5, 0.0]], dims=("layer", "head"))
    (trace,) = heatmap(array, centre=1.0).data
    assert (trace.zmin, trace.zmax) == (-0.5, 2.5)
    middle = trace.colorscale[len(trace.colorscale) // 2]
    assert middle[0] == 0.5


def test_negative_values_stay_and_what_was_not_measured_is_a_hole():
    array = xr.DataArray([[-2.0, np.nan], [0.5, 1.0]], dims=("layer", "pos"))
    (trace,) = heatmap(array).data
    np.testing.assert_array_equal(np.asarray(trace.z, float), array.values)
    assert trace.zmax == 2.0 and trace.hoverongaps is False


def test_a_table_of_zeros_is_drawn_at_the_centre_and_not_on_an_empty_scale():
    (trace,) = heatmap(xr.DataArray(np.zeros((2, 2)), dims=("layer", "head"))).data
    assert trace.zmin < 0 < trace.zmax


def test_layers_go_up_and_other_rows_go_down():
    assert heatmap(effects()).layout.yaxis.autorange is True
    assert heatmap(effects(dims=("query", "key"))).layout.yaxis.autorange == "reversed"


def test_equal_tokens_keep_their_own_columns_and_are_escaped_in_ticks_and_hover():
    tokens = [" John", "</script><b>", " John", "\n"]
    figure = heatmap(effects(columns=4), x_labels=tokens)
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2, 3]
    assert figure.layout.xaxis.ticktext == ("·John", "&lt;/script&gt;&lt;b&gt;", "·John", "↵")
    assert [cell[1] for cell in figure.data[0].customdata[0]] == list(figure.layout.xaxis.ticktext)


def test_labels_default_to_coordinates_and_long_ones_are_cut_only_on_the_axis():
    name = "a_very_long_position_name"
    array = effects(columns=2).assign_coords(pos=[name, "end"], layer=[4, 5, 6])
    figure = heatmap(array)
    assert figure.layout.xaxis.ticktext[0].endswith("…") and figure.layout.yaxis.ticktext == ("4", "5", "6")
    assert list(figure.data[0].customdata[0][0]) == ["4", name]


def test_many_columns_thin_their_ticks_and_ask_for_width():
    figure = heatmap(effects(columns=200))
    assert len(figure.layout.xaxis.tickvals) <= 64
    assert figure.layout.meta["min_width"] > heatmap(effects(columns=4)).layout.meta["min_width"]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (xr.DataArray(np.zeros((2, 2, 2)), dims=("layer", "pos", "prompt")), "two dimensions.*prompt=2"),
        (xr.DataArray(np.zeros((0, 2)), dims=("layer", "pos")), "layer=0"),
        (xr.DataArray([[np.inf, 1.0]], dims=("layer", "pos")), "1 of 2 values are infinite"),
        (xr.DataArray([[np.nan, np.nan]], dims=("layer", "pos")), "nothing to draw"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_that_says_why(array, says):
    with pytest.raises(ValueError, match=says):
        heatmap(array)


def test_labels_of_another_number_and_a_bare_array_are_errors():
    with pytest.raises(ValueError, match="x_labels has 2 labels for 4 entries of 'pos'"):
        heatmap(effects(columns=4), x_labels=["a", "b"])
    with pytest.raises(TypeError, match="DataArray"):
        heatmap(np.zeros((2, 2)))  # type: ignore[arg-type]


def causal(n, heads=None, seed=0):
    weights = np.tril(np.random.default_rng(seed).random((heads or 1, n, n)))
    weights /= weights.sum(-1, keepdims=True)
    return weights if heads else weights[0]


@pytest.mark.parametrize("heads", [None, 1, 2, 5, 16])
def test_every_head_gets_a_panel_on_one_scale_from_zero(heads):
    pattern = causal(6, heads)
    figure = attention(pattern, list("abcdef"))
    assert len(figure.data) == (heads or 1)
    for trace, head in zip(figure.data, pattern.reshape(-1, 6, 6), strict=True):
        np.testing.assert_allclose(np.asarray(trace.z, float), head)
        assert trace.coloraxis == "coloraxis"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0.0, pattern.max())


def test_attention_escapes_its_tokens_and_its_heads():
    figure = attention(causal(2, 2), ["<script>", " "], head_labels=["z.0.0", "<b>"])
    assert figure.layout.yaxis.ticktext == ("&lt;script&gt;", "·")
    assert "<script>" not in figure.to_json() and "<b>%{z" in figure.data[0].hovertemplate
    assert "&lt;b&gt;" in {note.text for note in figure.layout.annotations}


def test_attention_refuses_other_shapes_scores_and_too_many_heads():
    with pytest.raises(ValueError, match=r"\[\.\.\., 3, 3\]; got \[2, 2\]"):
        attention(causal(2), ["a", "b", "c"])
    with pytest.raises(ValueError, match="heatmap"):
        attention(causal(3) - 0.5, list("abc"))
    with pytest.raises(ValueError, match="at most 16"):
        attention(causal(3, 17), list("abc"))
    with pytest.raises(ValueError, match="1 names for 2 heads"):
        attention(causal(3, 2), list("abc"), head_labels=["one"])


def test_the_paper_version_has_the_same_scale_and_leaves_matplotlib_alone(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    array = effects()
    axes = to_matplotlib(array, x_labels=["$a", "b$", " c", "d"])
    image = axes.get_images()[0]
    assert image.get_clim() == (-np.abs(array.values).max(), np.abs(array.values).max())
    np.testing.assert_array_equal(np.asarray(image.get_array()), array.values)
    assert not axes.yaxis_inverted() and to_matplotlib(effects(dims=("query", "key"))).yaxis_inverted()
    assert dict(mpl.rcParams) == before
    axes.figure.savefig(tmp_path / "effects.pdf")
    assert (tmp_path / "effects.pdf").stat().st_size > 1000


def test_the_paper_version_draws_on_the_axes_it_is_given():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert to_matplotlib(effects(), axes) is axes
