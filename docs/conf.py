"""Sphinx: the pages of this folder, in Markdown."""

import importlib.metadata

project = "patchclamp"
copyright = "the authors of patchclamp, MIT licence"
version = release = importlib.metadata.version("patchclamp")
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "patchclamp"
