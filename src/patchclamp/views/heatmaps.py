"""Heatmaps: effects by layer and position or head, and attention patterns by query and key."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from patchclamp.views.canvas import TITLE_PIXELS, canvas
from patchclamp.views.labels import plotly_text, show_token
from patchclamp.views.palette import DIVERGING, SEQUENTIAL

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr
    from matplotlib.axes import Axes

MAX_HEADS = 16
_TICK_CHARACTERS = 14
_MAX_TICKS = 64
_CELL_PIXELS = 30
_BAR_PIXELS = 52  # what the colour bar takes above the plot
_WRITE_UP_TO = 8  # columns: in wider tables the numbers would not fit their cells on a phone


def heatmap(
    array: "xr.DataArray",
    *,
    title: str = "",
    x_labels: Sequence[str] | None = None,
    y_labels: Sequence[str] | None = None,
    centre: float = 0.0,
    colour_label: str = "effect",
) -> "go.Figure":
    """A table of signed values, dims (y, x), with `centre` in the colour of the page and equal reach to both sides.

    A `layer` dimension is drawn upwards, as the residual stream flows; any other reads from the top. Labels default to
    the array's coordinates; whitespace in them is made visible. NaN is a hole: it was not measured.
    Raises `ValueError` for an array that is not 2-D or is empty, for infinite values, for no finite value, and for
    labels of another number.

    >>> import xarray as xr
    >>> figure = heatmap(xr.DataArray([[0.1, -0.4]], dims=("layer", "pos")), x_labels=[" Mary", " gave"])
    >>> figure.data[0].zmin, figure.data[0].zmax
    (-0.4, 0.4)
    """
    import plotly.graph_objects as go

    values, reach = _signed(array, centre)
    rows, columns = values.shape
    y_dim, x_dim = (str(dim) for dim in array.dims)
    x_names, y_names = _names(array, 1, x_labels, "x_labels"), _names(array, 0, y_labels, "y_labels")
    trace = go.Heatmap(
        z=values,
        zmin=centre - reach,
        zmax=centre + reach,
        colorscale=DIVERGING["light"],
        meta={"scale": "diverging"},
        customdata=_pairs(y_names, x_names),
        hovertemplate=f"{plotly_text(y_dim)} %{{customdata[0]}}<br>{plotly_text(x_dim)} %{{customdata[1]}}<br>"
        f"{plotly_text(colour_label)} <b>%{{z:.4f}}</b><extra></extra>",
        texttemplate="%{z:.2f}" if columns <= _WRITE_UP_TO and values.size <= _WRITE_UP_TO**2 else None,
        textfont={"size": 11},
        xgap=1,
        ygap=1,
        hoverongaps=False,
    )
    longest = max(len(_tick(name)) for name in x_names)
    slanted = longest * 6.5 > _CELL_PIXELS and columns > 4
    bottom = 48 + (int(longest * 5.2) if slanted else 0)
    height = _BAR_PIXELS + bottom + min(max(rows, 3) * 34, 640)
    least = 110 + columns * (26 if slanted else 34)
    most = max(380, 120 + columns * 84)
    figure = canvas(title, height=height, bottom=bottom, top=_BAR_PIXELS, min_width=least, max_width=most)
    figure.add_trace(trace)
    figure.update_traces(colorbar=_colour_bar(figure, colour_label, title, height, _BAR_PIXELS))
    figure.update_xaxes(**_axis(x_names, x_dim, -45 if slanted else 0))
    room = (height - _BAR_PIXELS - bottom) // 14
    figure.update_yaxes(**_axis(y_names, y_dim, 0, room=room), autorange=True if y_dim == "layer" else "reversed")
    return figure


def attention(
    pattern: Float[np.ndarray, "*head query key"],
    tokens: Sequence[str],
    *,
    title: str = "",
    head_labels: Sequence[str] | None = None,
) -> "go.Figure":
    """Attention patterns of one head, or of up to 16 side by side on one colour scale from zero.

    Queries go down and keys across; tokens are drawn with their whitespace visible.
    Raises `ValueError` when the pattern is not [query key] or [head query key] over `tokens`, has a negative or
    non-finite value (scores, differences: use `heatmap`), or has more heads than can be read.
    """
    from plotly.subplots import make_subplots

    heads = _patterns(pattern, len(tokens))
    names = list(head_labels) if head_labels is not None else [f"head {i}" for i in range(len(heads))]
    if len(names) != len(heads):
        raise ValueError(f"attention: head_labels has {len(names)} names for {len(heads)} heads; give one a head")
    across = 1 if len(heads) == 1 else 2 if len(heads) in (2, 4) else 3 if len(heads) <= 9 else 4
    down = math.ceil(len(heads) / across)
    shown_names = [plotly_text(show_token(name)) for name in names] if len(heads) > 1 or head_labels else None
    labels = [show_token(token) for token in tokens]
    longest = max(len(_tick(label)) for label in labels)
    cell = {1: 24, 2: 18}.get(across, 13)
    panel = max(min(len(tokens) * cell, 520), 150)
    margin, gap, top = 34 + int(longest * 6.2), 40, _BAR_PIXELS + (24 if shown_names else 0)
    height = top + margin + down * panel + (down - 1) * gap
    width = margin + across * panel + (across - 1) * 24
    grid = make_subplots(
        rows=down,
        cols=across,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=shown_names,
        horizontal_spacing=24 / width,
        vertical_spacing=gap / (height - top - margin) if down > 1 else 0,
    )
    figure = canvas(
        title,
        height=height,
        bottom=margin,
        top=top,
        min_width=min(width, 760),
        max_width=width + 40,
        coloraxis="sequential",
        figure=grid,
    )
    figure.update_annotations(font={"size": 12})
    size = 11 if cell > 20 else 10 if cell > 15 else 9
    axis = _axis(labels, "", 0, size, room=panel // (size + 2))
    for i, head in enumerate(heads):
        row, column = i // across + 1, i % across + 1
        figure.add_heatmap(
            z=head,
            coloraxis="coloraxis",
            customdata=_pairs(labels, labels),
            hovertemplate="from %{customdata[0]}<br>to %{customdata[1]}<br>attention <b>%{z:.3f}</b>"
            f"<extra>{plotly_text(show_token(names[i]))}</extra>",
            row=row,
            col=column,
        )
        last_in_column = i + across >= len(heads)
        figure.update_xaxes({**axis, "tickangle": -90}, showticklabels=last_in_column, row=row, col=column)
        figure.update_yaxes(axis, showticklabels=column == 1, autorange="reversed", row=row, col=column)
    scale = {"colorscale": SEQUENTIAL["light"], "cmin": 0.0, "cmax": float(heads.max()) or 1.0}
    figure.update_layout(coloraxis={**scale, "colorbar": _colour_bar(figure, "attention", title, height, top)})
    return figure


def to_matplotlib(
    array: "xr.DataArray",
    ax: "Axes | None" = None,
    *,
    x_labels: Sequence[str] | None = None,
    y_labels: Sequence[str] | None = None,
    centre: float = 0.0,
    colour_label: str = "effect",
) -> "Axes":
    """The same table as `heatmap`, drawn by matplotlib for a paper; a figure of its own where no `ax` is given.

    No window opens and matplotlib's own settings are left as they are; `ax.figure.savefig("effects.pdf")` writes it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    values, reach = _signed(array, centre)
    rows, columns = values.shape
    y_dim, x_dim = (str(dim) for dim in array.dims)
    if ax is None:
        own = Figure(figsize=(max(2.4, 0.3 * columns + 1.4), max(1.6, 0.3 * rows + 1.0)), layout="constrained")
        FigureCanvasAgg(own)
        ax = own.add_subplot()
    colours = LinearSegmentedColormap.from_list("patchclamp", [(float(at), str(c)) for at, c in DIVERGING["light"]])
    image = ax.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=centre - reach,
        vmax=centre + reach,
        aspect="auto",
        interpolation="nearest",
        origin="lower" if y_dim == "layer" else "upper",
    )
    literal = [name.replace("$", r"\$") for name in _names(array, 1, x_labels, "x_labels")]
    ax.set_xticks(range(columns), literal, rotation=90 if max(map(len, literal)) > 3 else 0, fontsize=7)
    literal = [name.replace("$", r"\$") for name in _names(array, 0, y_labels, "y_labels")]
    ax.set_yticks(range(rows), literal, fontsize=7)
    ax.set_xlabel(x_dim, fontsize=8)
    ax.set_ylabel(y_dim, fontsize=8)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label(colour_label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return ax


def _signed(array: "xr.DataArray", centre: float) -> tuple[np.ndarray, float]:
    """The values, and how far from `centre` the furthest of them lies (never 0, which plotly would widen by itself)."""
    if not hasattr(array, "dims"):
        raise TypeError(f"heatmap takes an xarray.DataArray with two named dimensions, not {type(array).__name__}")
    if array.ndim != 2 or array.size == 0:
        shape = ", ".join(f"{dim}={size}" for dim, size in array.sizes.items()) or "no dimensions"
        raise ValueError(f"heatmap takes a table of two dimensions with values in it; got ({shape}): select first")
    values = np.asarray(array.values, dtype=np.float64)
    if np.isinf(values).any():
        raise ValueError(
            f"heatmap: {int(np.isinf(values).sum())} of {values.size} values are infinite; none can be drawn"
        )
    if np.isnan(values).all():
        raise ValueError(f"heatmap: all {values.size} values are NaN; there is nothing to draw")
    return values, float(np.nanmax(np.abs(values - centre))) or 1.0


def _names(array: "xr.DataArray", axis: int, labels: Sequence[str] | None, argument: str) -> list[str]:
    dim = array.dims[axis]
    if labels is None:
        labels = [
            str(value) for value in (array.coords[dim].values if dim in array.coords else range(array.shape[axis]))
        ]
    if len(labels) != array.shape[axis]:
        raise ValueError(f"heatmap: {argument} has {len(labels)} labels for {array.shape[axis]} entries of {dim!r}")
    return [show_token(str(label)) for label in labels]


def _patterns(pattern: ArrayLike, n_tokens: int) -> np.ndarray:
    values = np.asarray(pattern, dtype=np.float64)
    if values.ndim not in (2, 3) or values.shape[-2:] != (n_tokens, n_tokens) or values.size == 0:
        raise ValueError(
            f"attention takes a pattern [query key] or [head query key] over its {n_tokens} tokens, "
            f"that is [..., {n_tokens}, {n_tokens}]; got {list(values.shape)}"
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            "attention takes probabilities; this has negative or non-finite values: draw it with `heatmap`"
        )
    values = values.reshape(-1, n_tokens, n_tokens)
    if len(values) > MAX_HEADS:
        raise ValueError(f"attention draws at most {MAX_HEADS} heads side by side; got {len(values)}: choose some")
    return values


def _pairs(y_names: list[str], x_names: list[str]) -> list[list[list[str]]]:
    xs = [plotly_text(name) for name in x_names]
    return [[[plotly_text(y), x] for x in xs] for y in y_names]


def _tick(name: str) -> str:
    return name if len(name) <= _TICK_CHARACTERS else name[: _TICK_CHARACTERS - 1] + "…"


def _axis(names: list[str], title: str, angle: int, size: int = 12, room: int = _MAX_TICKS) -> dict[str, Any]:
    """Ticks by number, since two positions may hold the same token; thinned where they could not be read."""
    step = math.ceil(len(names) / room)
    return {
        "tickvals": list(range(0, len(names), step)),
        "ticktext": [plotly_text(_tick(name)) for name in names[::step]],
        "tickangle": angle,
        "tickfont": {"size": size},
        "title": {"text": plotly_text(title), "font": {"size": 12}, "standoff": 8},
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def _colour_bar(figure: "go.Figure", label: str, title: str, height: int, top: int) -> dict[str, Any]:
    """A thin bar above the plot with its label over it: beside the plot it would cost a phone a quarter of its width.

    It is placed from the top of the figure: one tied to the plot would push the plot down after its titles are set.
    """
    above = TITLE_PIXELS if title else 0
    figure.add_annotation(
        text=plotly_text(label), showarrow=False, x=0, xref="paper", xanchor="left", y=1, yref="paper", yanchor="top",
        yshift=top, font={"size": 11}, borderpad=0,
    )  # fmt: skip
    return {
        "orientation": "h",
        "thickness": 8,
        "lenmode": "pixels",
        "len": 200,
        "x": 0,
        "xanchor": "left",
        "y": 1 - (above + 18) / (height + above),
        "yref": "container",
        "yanchor": "top",
        "ypad": 0,
        "xpad": 0,
        "outlinewidth": 0,
        "nticks": 5,
        "tickfont": {"size": 10},
    }
