"""An installed package with a pair and a system of its own: everything works on it by its entry point alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tests" / "example_package"
OPTIONS = ["--steps", "4", "--eval-every", "2", "--batch-size", "16", "--z-dim", "2", "--device", "cpu", "--no-compile"]
TRAIN = "import sys; from pplmodels.systems import train; train('linear-vae', sys.argv[1:])"
CHECK = """
import torch
from pplmodels import load_pair
from pplmodels.inspect import check_pair
print(check_pair(*load_pair("run"), torch.rand(5, 1, 8, 8)))
"""

CONTRACT = """
import sys
import torch
from linear_vae.pair import LinearGuide, LinearVAE
from pplmodels.testing import Pair, check_contract
sizes = {"image": (1, 4, 4), "z_dim": 2}
model, guide = lambda: LinearVAE(**sizes), lambda model: LinearGuide(**sizes)
check_contract(Pair(model, guide, batch=lambda n: torch.rand(n, 1, 4, 4)))
print("pytest" in sys.modules)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what an installation of the example package leaves."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE / "linear_vae", site / "linear_vae")
    metadata = site / "linear_vae-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: linear-vae\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[pplmodels.systems]\nlinear-vae = linear_vae\n")
    return site


@pytest.fixture(scope="module")
def trained(site, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    python(site, work, "-c", TRAIN, *OPTIONS, "--out", "run")
    return work


def python(site, work, *arguments):
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=work,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_system_is_trained_and_its_pair_is_loaded_in_a_process_that_has_not_imported_it(site, trained):
    config = json.loads((trained / "run" / "config.json").read_text())
    assert config["system"] == "linear-vae" and config["z_dim"] == 2
    assert "import linear_vae" not in CHECK
    assert python(site, trained, "-c", CHECK) == "[]\n"


def test_a_file_of_the_packages_name_in_the_working_directory_does_not_hide_it(site, trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    for name in ("linear_vae", "guides"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not the package that is installed')")
    assert python(site, tmp_path, "-c", CHECK) == "[]\n"


def test_its_runs_are_evaluated_and_compared(site, trained):
    python(site, trained, ROOT / "scripts/evaluate.py", "run", "--iw-samples", "3", "--iw-images", "20")
    result = json.loads((trained / "run/result.json").read_text())["metrics"]
    evaluation = json.loads((trained / "run/evaluation.json").read_text())
    assert evaluation.items() >= result.items() and evaluation["bits_per_dim"] > 0 and evaluation["iw_images"] == 20
    protocol = ["--steps", "2", "--batch-size", "16", "--iw-samples", "2", "--iw-images", "10", "--device", "cpu"]
    python(site, trained, ROOT / "scripts/compare.py", "--systems", "linear-vae", *protocol, "--out", "report")
    report = json.loads((trained / "report/report.json").read_text())
    assert list(report["rows"]) == ["linear-vae"] and report["transform"] == "dequantised"


def test_its_pair_keeps_the_contract_where_pytest_is_not_imported(site, tmp_path):
    assert python(site, tmp_path, "-c", CONTRACT) == "False\n"
