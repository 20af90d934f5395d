"""How Sphinx builds the site: ``sphinx-build docs site``."""

import re
from pathlib import Path

import pplmodels

project = "pplmodels"
copyright = "the pplmodels authors"
release = pplmodels.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "pplmodels"
suppress_warnings = ["myst.header"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run them
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False


def _readme_in_front(app, page: str, source: list[str]) -> None:
    """The site's first page is README.md, whose links start one folder higher."""
    if page == "index":
        text = (Path(__file__).parent.parent / "README.md").read_text()
        text = re.sub(r"\]\((?!docs/|https?:)", "](../", text).replace("](docs/", "](")
        for file, page in {"results/comparison/report.md": "comparison.md", "CHANGELOG.md": "changelog.md"}.items():
            text = text.replace(f"](../{file})", f"]({page})")
        source[0] = text + source[0]


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _readme_in_front)
