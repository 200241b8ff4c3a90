"""The empty figure that every drawing starts from: quiet axes, no background, the reader's own font."""

from typing import TYPE_CHECKING

from patchclamp.views.labels import plotly_text
from patchclamp.views.palette import SERIES

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
TITLE_PIXELS = 30
_TITLE = {
    "x": 0,
    "xref": "paper",
    "y": 1,
    "yref": "container",
    "yanchor": "top",
    "pad": {"t": 6},
    "font": {"size": 15},
}
_AXIS = {
    "gridcolor": "rgba(128,132,140,0.18)",
    "zerolinecolor": "rgba(128,132,140,0.55)",
    "zerolinewidth": 1,
    "ticks": "",
    "automargin": True,
    "title": {"font": {"size": 12}, "standoff": 10},
}


def canvas(
    title: str,
    *,
    height: int,
    top: int = 48,
    bottom: int = 52,
    min_width: int = 300,
    max_width: int | None = None,
    coloraxis: str | None = None,
    figure: "go.Figure | None" = None,
) -> "go.Figure":
    """A figure (or the given one) in the house style: `height` pixels, `top` and `bottom` of them around the plot.

    A title adds its own pixels on top. `layout.meta` tells the report what the figure needs: a page narrower than
    `min_width` scrolls it inside its box, none stretches it past `max_width`, `coloraxis` names the scale to swap in
    the dark.
    """
    import plotly.graph_objects as go

    figure = go.Figure() if figure is None else figure
    needs = {"min_width": min_width, "max_width": max_width, "coloraxis": coloraxis}
    layout = go.Layout(
        colorway=list(SERIES),
        font={"family": FONT, "size": 12, "color": "#2a2d33"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"font": {"family": FONT, "size": 12}, "align": "left"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "font": {"size": 12}},
        xaxis=_AXIS,
        yaxis=_AXIS,
    )
    figure.update_layout(
        template={"layout": layout},
        title={"text": plotly_text(title), **_TITLE} if title else None,
        height=height + (TITLE_PIXELS if title else 0),
        margin={"l": 56, "r": 16, "t": top + (TITLE_PIXELS if title else 0), "b": bottom},
        meta={key: value for key, value in needs.items() if value is not None},
    )
    return figure
