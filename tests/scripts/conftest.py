"""Scripts inside the test's process."""

import runpy
import sys

import pytest
from starting import ROOT


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield lambda name: runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]
    sys.path.remove(str(ROOT / "scripts"))
