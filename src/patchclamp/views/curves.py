"""Bars with their controls, dose-response curves, and one measure against another."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from patchclamp.views.canvas import canvas
from patchclamp.views.labels import plotly_text, show_token
from patchclamp.views.palette import CONTROL, POSITIVE, SERIES

if TYPE_CHECKING:
    import plotly.graph_objects as go

_GREY = "rgba(128,132,140,{})"


def bars(
    names: Sequence[str],
    values: Sequence[float],
    intervals: ArrayLike | None = None,
    control: Sequence[float] | None = None,
    control_intervals: ArrayLike | None = None,
    *,
    title: str = "",
    x_title: str = "",
    label: str = "result",
    control_label: str = "control",
) -> "go.Figure":
    """One bar a result, from the top down, its control right below it in grey, whiskers over the intervals.

    `intervals` and `control_intervals` are (low, high) ends [name 2] in the units of the values, not distances.
    Raises `ValueError` for lengths that differ, non-finite values, or an interval whose low end is above its high end.
    """
    import plotly.graph_objects as go

    results = _row(values, "values", len(names))
    controls = None if control is None else _row(control, "control", len(names))
    if controls is None and control_intervals is not None:
        raise ValueError("bars: control_intervals without control; give the controls' own values too")
    shown = [plotly_text(show_token(name)) for name in names]
    width = 0.62 if controls is None else 0.36
    rows = np.arange(len(names), dtype=np.float64)
    figure = canvas(title, height=len(names) * (34 if controls is None else 50) + 104)
    groups = [(label, results, intervals, POSITIVE, 0.0 if controls is None else -0.5 * width - 0.02)]
    if controls is not None:
        groups.append((control_label, controls, control_intervals, CONTROL, 0.5 * width + 0.02))
    for group, numbers, ends, colour, shift in groups:
        spans = None if ends is None else _ends(ends, f"intervals of {group}", len(names))
        said = [f"{number:.4g}" + ("" if spans is None else f"  [{spans[i, 0]:.4g}, {spans[i, 1]:.4g}]")
                for i, number in enumerate(numbers)]  # fmt: skip
        figure.add_trace(
            go.Bar(
                y=rows + shift,
                x=numbers,
                width=width,
                orientation="h",
                name=plotly_text(group),
                marker={"color": colour, "line": {"width": 0}},
                customdata=list(zip(shown, said, strict=True)),
                hovertemplate="%{customdata[0]}<br><b>%{customdata[1]}</b><extra>%{fullData.name}</extra>",
                showlegend=controls is not None,
            )
        )
        if spans is not None:
            middle = spans.mean(1)
            figure.add_trace(_whiskers(middle, rows + shift, spans[:, 1] - middle))
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_xaxes(title={"text": plotly_text(x_title)})
    figure.update_yaxes(
        tickvals=rows,
        ticktext=[plotly_text(show_token(name, 26)) for name in names],
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        ticklabelstandoff=6,
    )
    return figure


def lines(
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    intervals: Mapping[str, ArrayLike] | None = None,
    control: Sequence[float] | None = None,
    control_interval: ArrayLike | None = None,
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    control_label: str = "control",
) -> "go.Figure":
    """Curves over `x` (a dose and its responses), each with its band, over a grey control with its own.

    `intervals[name]` and `control_interval` are (low, high) ends [x 2]. Raises `ValueError` for lengths that differ, an
    interval for a curve that is not there, or non-finite values.
    """
    import plotly.graph_objects as go

    doses = _row(x, "x", None)
    unknown = sorted(set(intervals or {}) - set(curves))
    if not curves or unknown:
        raise ValueError(f"lines: curves are {sorted(curves)}; " + (f"no curve {unknown}" if unknown else "give one"))
    figure = canvas(title, height=380)
    drawn = [(name, values, (intervals or {}).get(name), SERIES[i % len(SERIES)], "solid")
             for i, (name, values) in enumerate(curves.items())]  # fmt: skip
    if control is not None or control_interval is not None:
        middle = control if control is not None else _ends(control_interval, "control_interval", len(doses)).mean(1)
        drawn.insert(0, (control_label, middle, control_interval, CONTROL, "dot"))
    for name, values, ends, colour, dash in drawn:
        numbers = _row(values, name, len(doses))
        if ends is not None:
            spans = _ends(ends, f"interval of {name}", len(doses))
            figure.add_trace(_band(doses, spans, colour, plotly_text(name)))
        figure.add_trace(
            go.Scatter(
                x=doses,
                y=numbers,
                name=plotly_text(name),
                legendgroup=plotly_text(name),
                mode="lines+markers",
                line={"color": colour, "width": 2, "dash": dash},
                marker={"size": 5},
                hovertemplate="%{x:.4g}: <b>%{y:.4g}</b><extra>%{fullData.name}</extra>",
                showlegend=True,
            )
        )
    figure.update_xaxes(title={"text": plotly_text(x_title)})
    figure.update_yaxes(title={"text": plotly_text(y_title)})
    return figure


def scatter(
    x: Float[np.ndarray, "point"],
    y: Float[np.ndarray, "point"],
    labels: Sequence[str] | None = None,
    *,
    title: str = "",
    x_title: str = "exact",
    y_title: str = "approximate",
) -> "go.Figure":
    """One measure against another, with the line of equality and Pearson's r written in the corner.

    Both axes have one scale, so that the line is the diagonal. r is "undefined" where a side does not vary.
    Raises `ValueError` for lengths that differ or non-finite values, which would otherwise go missing unseen.
    """
    import plotly.graph_objects as go

    xs, ys = _row(x, "x", None), _row(y, "y", len(np.ravel(x)))
    names = [f"#{i}" for i in range(len(xs))] if labels is None else [show_token(name) for name in labels]
    if len(names) != len(xs):
        raise ValueError(f"scatter: {len(names)} labels for {len(xs)} points; give one a point")
    varies = len(xs) > 1 and np.ptp(xs) > 0 and np.ptp(ys) > 0
    written = f"r = {np.corrcoef(xs, ys)[0, 1]:.3f}" if varies else "r undefined (a side does not vary)"
    low, high = float(min(xs.min(), ys.min())), float(max(xs.max(), ys.max()))
    pad = 0.06 * (high - low) or 0.5
    ends = [low - pad, high + pad]
    figure = canvas(title, height=440, top=24, max_width=520)
    grey = {"color": _GREY.format(0.7), "dash": "dot", "width": 1}
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line=grey, hoverinfo="skip", showlegend=False))
    figure.add_trace(
        go.Scatter(
            x=xs,
            y=ys,
            mode="markers",
            marker={"size": 8, "color": POSITIVE, "opacity": 0.72, "line": {"width": 0}},
            customdata=[[plotly_text(name)] for name in names],
            hovertemplate=f"%{{customdata[0]}}<br>{plotly_text(x_title)} <b>%{{x:.4f}}</b><br>"
            f"{plotly_text(y_title)} <b>%{{y:.4f}}</b><extra></extra>",
            showlegend=False,
        )
    )
    corner = {"x": 0.02, "y": 0.98, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top"}
    figure.add_annotation(text=f"{written} · n = {len(xs)}", showarrow=False, font={"size": 13}, **corner)
    figure.update_xaxes(title={"text": plotly_text(x_title)}, range=ends)
    figure.update_yaxes(title={"text": plotly_text(y_title)}, range=ends)
    return figure


def _row(values: ArrayLike, name: str, length: int | None) -> np.ndarray:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or len(row) == 0 or (length is not None and len(row) != length):
        wanted = "a row of numbers" if length is None else f"{length} numbers"
        raise ValueError(f"{name}: expected {wanted}, got shape {list(row.shape)}")
    if not np.isfinite(row).all():
        raise ValueError(
            f"{name}: {int((~np.isfinite(row)).sum())} of {len(row)} are not finite; leave them out, and say so"
        )
    return row


def _ends(intervals: ArrayLike | None, name: str, length: int) -> np.ndarray:
    ends = np.asarray(intervals, dtype=np.float64)
    if ends.shape != (length, 2):
        raise ValueError(f"{name}: expected (low, high) ends of shape [{length}, 2], got {list(ends.shape)}")
    if not np.isfinite(ends).all() or (ends[:, 0] > ends[:, 1]).any():
        raise ValueError(f"{name}: every interval has finite ends with low <= high; got {ends.tolist()}")
    return ends


def _whiskers(middle: np.ndarray, rows: np.ndarray, half: np.ndarray) -> "go.Scatter":
    """From low to high as they are: an interval need not hold its value, nor lie evenly about it."""
    import plotly.graph_objects as go

    error = {"type": "data", "array": half, "thickness": 1.4, "width": 4, "color": _GREY.format(1)}
    invisible = {"size": 0.1, "opacity": 0}
    return go.Scatter(
        x=middle, y=rows, mode="markers", marker=invisible, error_x=error, hoverinfo="skip",
        showlegend=False, meta={"whiskers": True},
    )  # fmt: skip


def _band(x: np.ndarray, ends: np.ndarray, colour: str, group: str) -> "go.Scatter":
    import plotly.graph_objects as go

    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([ends[:, 1], ends[::-1, 0]]),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=group,
        showlegend=False,
    )
