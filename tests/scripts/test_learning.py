"""That training works at all: minutes each, so not in the short suite."""

import json

import pytest
from starting import start

pytestmark = pytest.mark.slow


def test_air_counts_the_built_in_digits(tmp_path):
    process = start("train_air", "--steps", "2000", "--out", tmp_path / "run")
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    metrics = json.loads((tmp_path / "run/result.json").read_text())["metrics"]
    assert metrics["count_accuracy"] >= 0.8
