"""The pairs of this project by their names, on which the contract tests run: those of all tests/models/test_*.py."""

import importlib
import sys
from pathlib import Path

from pplmodels.testing import Pair

MODELS = Path(__file__).parent / "models"
sys.path.insert(0, str(MODELS))  # pytest imports the same modules under the same names

PAIRS: dict[str, Pair] = {}
for path in sorted(MODELS.glob("test_*.py")):
    pairs = getattr(importlib.import_module(path.stem), "PAIRS", {})
    assert not pairs.keys() & PAIRS.keys(), f"{path} has a pair whose name another file has"
    PAIRS |= pairs
