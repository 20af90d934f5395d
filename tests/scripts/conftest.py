"""Scripts inside the test's process."""

import runpy
import sys

import pytest
from starting import ROOT

sys.path.insert(0, str(ROOT / "scripts"))  # scripts import each other


@pytest.fixture
def script():
    return lambda name: runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]
