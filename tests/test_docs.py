"""The site builds without a warning, has a page a model, and the examples in docstrings say what happens."""

import doctest
import importlib
import pkgutil
import warnings
from pathlib import Path

import pytest

import guides
import pplmodels
from pplmodels.systems import all_systems

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for package in (pplmodels, guides)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


@pytest.mark.filterwarnings("ignore")
def test_the_site_builds_and_has_a_page_per_system(tmp_path):
    sphinx = pytest.importorskip("sphinx.cmd.build")
    pytest.importorskip("myst_nb")
    arguments = [
        "-q",
        "-W",
        "--keep-going",
        "-d",
        str(tmp_path / "doctrees"),
        str(ROOT / "docs"),
        str(tmp_path / "site"),
    ]
    assert sphinx.main(arguments) == 0
    api = (tmp_path / "site" / "api.html").read_text()
    for name in (*pplmodels.__all__, *guides.__all__):
        module = "pplmodels" if name in pplmodels.__all__ else "guides"
        assert f'id="{module}.{name}"' in api
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    assert all_systems()
    assert {f"systems/{name}" for name in all_systems()} <= pages
    front = (tmp_path / "site" / "index.html").read_text()
    assert all(f'href="{page}.html' in front for page in pages - {"index"})


def test_examples_in_docstrings_run():
    ran = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in MODULES:
            failed, tried = doctest.testmod(importlib.import_module(name))
            assert failed == 0, name
            ran += tried
    assert ran >= 3
