"""Names that the terminal cannot show, and names that are no UTF-8."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from starting import ROOT
from test_train_vaes import SMALL

NAME = "Läufe ✓ 数" + ("\udcff" if sys.platform == "linux" else "")  # a byte that is no UTF-8


def ends_well(name, *arguments):
    """What the script says, on a terminal that knows Western European letters only."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    strict = {**os.environ, "PYTHONIOENCODING": "cp1252:strict"}
    done = subprocess.run(command, capture_output=True, env=strict)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    return done.stdout.decode("cp1252")


@pytest.mark.slow
def test_a_training_and_its_evaluation_end_well_whatever_their_folder_is_called(tmp_path):
    run, data = tmp_path / NAME, tmp_path / f"{NAME}.npz"
    images = np.arange(1280, dtype=np.uint8).reshape(20, 8, 8)
    np.savez(data, x_train=images, x_test=images)
    shown = str(run).encode("cp1252", "backslashreplace").decode("cp1252")
    small = [*SMALL, "--no-compile", "--hidden", "4", "--z-dim", "1", "--data", data, "--out", run]
    assert ends_well("train_vae", *small).endswith(f"all results are in {shown}\n")
    assert json.loads((run / "config.json").read_text())["data"] == str(data)
    assert shown in ends_well("evaluate", run)
    assert (run / "evaluation.npz").exists()
