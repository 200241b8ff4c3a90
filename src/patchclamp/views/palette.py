"""The colours of figures, for a light and a dark page.

Blue is positive and red negative, as in the field's other tools, a pair that readers who do not see red can tell apart.
The scales pass through the colour of the page at zero, so that "nothing happened" looks like nothing.
"""

from typing import Final

Scale = list[list[float | str]]

POSITIVE: Final = "#2f6fae"
NEGATIVE: Final = "#b5483a"
CONTROL: Final = "#9a9ea6"
SERIES: Final = ("#2f6fae", "#c0762b", "#3f8f6b", "#8a5fa8", "#b5483a", "#5b7f95")


def _scale(*colours: str) -> Scale:
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


DIVERGING: Final = {
    "light": _scale("#8c2423", "#c65f4e", "#eab6a3", "#f8f7f4", "#a9cbe4", "#4a8cc2", "#1b4a80"),
    "dark": _scale("#ff9f8c", "#d95f4c", "#6e322c", "#1c1f24", "#254a6d", "#478fcf", "#a6d6ff"),
}
SEQUENTIAL: Final = {
    "light": _scale("#f8f7f4", "#c3d9ea", "#7fb0d6", "#3a7ab5", "#173f70"),
    "dark": _scale("#1c1f24", "#22415f", "#33699e", "#5fa5dd", "#c0e2ff"),
}
# Text and axes of figures: not in the stylesheet, since a page printed from a dark screen must ask for the light ones.
CHROME: Final = {
    "light": {
        "ink": "#22252b",
        "faint": "#7a808a",
        "raised": "#f5f3ee",
        "rule": "#d5d2cb",
        "accent": "#2a629b",
        "grid": "rgba(90,96,108,0.14)",
        "zero": "rgba(90,96,108,0.5)",
    },
    "dark": {
        "ink": "#e4e3df",
        "faint": "#8b9099",
        "raised": "#23272e",
        "rule": "#3a3f48",
        "accent": "#85b8ea",
        "grid": "rgba(160,168,180,0.14)",
        "zero": "rgba(160,168,180,0.5)",
    },
}
