"""What runs on GitHub is what setup.py promises and .ci/run checks."""

import re
from pathlib import Path

import pytest
import test_pairs
import yaml

ROOT = Path(__file__).parent.parent
JOBS = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]


def commands(job):
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_every_promised_python_is_tested():
    setup = (ROOT / "setup.py").read_text("utf-8")
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', setup)
    matrix = JOBS["tests"]["strategy"]["matrix"]
    assert matrix["python"] == promised
    assert [(entry["python"], entry["versions"]) for entry in matrix["include"]] == [(promised[0], "oldest")]


def test_the_commands_of_the_local_check_run_there_too():
    run = {*commands("lint"), *commands("types"), *commands("tests")}
    local = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    for command in ("ruff check .", "ruff format --check .", "mypy", "pytest"):
        assert command in local and command in run


def test_one_release_of_ruff_formats_before_a_commit_and_after():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    (release,) = (hook["rev"] for hook in hooks if hook["repo"].endswith("/ruff-pre-commit"))
    assert f"pip install ruff=={release.removeprefix('v')}" in commands("lint")


KNOWN = re.findall(r'--deselect "(.*?)"', " ".join(commands("tests")))


@pytest.mark.parametrize("known", KNOWN)
def test_what_is_left_out_with_the_oldest_releases_exists(known):
    name, case = re.fullmatch(r"tests/test_pairs\.py::(\w+)\[(.*)\]", known).groups()
    assert hasattr(test_pairs, name)
    assert case in test_pairs.PAIRS or case in [parameters.id for parameters in test_pairs.CASES]


def test_the_page_on_versions_says_how_many_are_left_out():
    assert len(KNOWN) == 5
    assert "Five tests fail with torch 2.6" in (ROOT / "docs/versions.md").read_text("utf-8")
