"""Sphinx: the pages of this folder, in Markdown."""

from importlib.metadata import version

project = "patchclamp"
copyright = "the authors of patchclamp, MIT licence"  # noqa: A001
release = version("patchclamp")
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "patchclamp"
