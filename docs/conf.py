"""Sphinx builds these pages with this: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from leakypar import __version__  # noqa: E402

project = "leakypar"
author = "The leakypar authors"
copyright = author  # the name is Sphinx's
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
highlight_language = "none"  # of a block that names none: commands, pseudocode
html_theme = "furo"
html_title = "leakypar"

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "attrs_block"]
# The pages link to sources and to figures beside them, which are files of the repository, as on any host that shows it.
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 80
default_role = "literal"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
