"""Pairs of other installed packages are found by their entry points."""

import os
import subprocess
import sys

import pytest

PACKAGE = """
import pyro
import pyro.distributions as dist
import torch

from pplmodels.module import PairModule, data_plate


class Toy(PairModule):
    role = "model"

    def __init__(self, size=3):
        super().__init__("toy")
        self.net = torch.nn.Linear(size, 4)

    def forward(self, x=None, n=None):
        with data_plate(n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


class ToyGuide(PairModule):
    role = "guide"

    def __init__(self, size=3):
        super().__init__("toy_guide")
        self.net = torch.nn.Linear(4, size)

    def forward(self, x=None, n=None):
        with data_plate(len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))
"""
LOAD = """
import torch
from pplmodels import load_pair
from pplmodels.inspect import check_pair
print(check_pair(*load_pair("run"), torch.randn(5, 4)))
"""


@pytest.mark.parametrize("shadowed", [False, True], ids=["", "hidden by a file in the working directory"])
def test_a_pair_of_another_package_is_loaded_without_importing_it(tmp_path, shadowed):
    site, work = tmp_path / "site", tmp_path / "work"
    for folder in (site / "others", site / "others-1.dist-info", work):
        folder.mkdir(parents=True)
    (site / "others" / "__init__.py").write_text(PACKAGE)
    (site / "others-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1\n")
    (site / "others-1.dist-info" / "entry_points.txt").write_text("[pplmodels.pairs]\nothers = others\n")
    run = {"cwd": work, "env": os.environ | {"PYTHONPATH": str(site)}, "text": True}
    save = "import others; others.Toy().save_pretrained('run'); others.ToyGuide().save_pretrained('run')"
    subprocess.check_call([sys.executable, "-c", save], **run)
    if shadowed:
        (work / "others.py").write_text("raise RuntimeError('not the package that is installed')")
    assert subprocess.check_output([sys.executable, "-c", LOAD], **run) == "[]\n"
