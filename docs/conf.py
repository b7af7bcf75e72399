"""Sphinx configuration: ``sphinx-build -W --keep-going docs docs/_build``."""

from importlib.metadata import version as installed

from sphinx.application import Sphinx

project = "pysm_vae"
author = "The pysm_vae developers"
copyright = "the pysm_vae developers"
release = version = installed("pysm_vae")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "pysm_vae"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have shapes and units, which say more
autosummary_generate = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Names in single backquotes are functions of this package.
default_role = "code"

# Files that lie beside the docs and are pages of the site, too: links to them, which work in the
# repository, are turned to the pages.
PAGES = {
    "../data/octave.md": "octave_card.md",
    "../data/thorne2021.md": "thorne2021_card.md",
    "../data/README.md": "data.md",
    "../benchmarks/README.md": "benchmarks.md",
}


def _link_pages(text: list[str]) -> None:
    for outside, inside in PAGES.items():
        text[0] = text[0].replace(f"]({outside})", f"]({inside})")


def setup(app: Sphinx) -> None:
    """Turn links in pages, and in what they include."""
    app.connect("source-read", lambda app, name, text: _link_pages(text))
    app.connect("include-read", lambda app, path, parent, text: _link_pages(text))
