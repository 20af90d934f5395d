"""What is installed: its version, which is the same everywhere, its licence, and every file of both packages."""

import email
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pplmodels

ROOT = Path(__file__).parent.parent
PACKAGES = ("pplmodels", "guides")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with what a wheel would hold, and with its metadata in ``pplmodels.egg-info``."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    folder = tmp_path_factory.mktemp("built")
    commands = ["build_py", "--build-lib", str(folder), "egg_info", "--egg-base", str(folder)]
    subprocess.run([sys.executable, "setup.py", "-q", *commands], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture
def metadata(built):
    return email.message_from_string((built / "pplmodels.egg-info" / "PKG-INFO").read_text("utf-8"))


def test_one_version_and_one_licence_are_named_everywhere(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    latest = re.search("^## ([^ ]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1]
    assert pplmodels.__version__ == metadata["Version"] == citation["version"] == latest
    assert metadata["License"] == citation["license"] == "Apache-2.0"
    assert metadata["Name"] == citation["title"] == "pplmodels"


def test_the_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert all(isinstance(citation[field], str) for field in ("message", "title", "version"))
    assert [author["name"] for author in citation["authors"]] == ["The pplmodels developers"]


def test_every_module_and_the_mark_of_typed_packages_are_installed(built):
    for package in PACKAGES:
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        found = {str(path.relative_to(built)) for path in (built / package).rglob("*") if path.is_file()}
        assert found == sources | {f"{package}/py.typed"}


def test_the_index_of_packages_shows_the_readme(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# pplmodels\n")
    promised = metadata["Requires-Python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {promised}" in metadata.get_all("Classifier")
