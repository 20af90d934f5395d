"""Every test starts from the same seed, an empty param store, full validation and one thread."""

import os
import runpy
import sys
import tempfile
import warnings
from pathlib import Path

import pyro
import pytest
import torch

with warnings.catch_warnings():
    # At its first import of a day, ArviZ 0.23 writes a file and warns about 1.0. The import fails if another process
    # writes the file at the same time. pytest imports this module before it starts its workers.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz  # noqa: F401 - imported for this effect

torch.set_num_threads(1)  # the tests' tensors are small, and two processes share the cores
os.environ["OMP_NUM_THREADS"] = "1"  # so for scripts and notebooks that the tests start
# no fused steps of earlier runs, which round differently
os.environ["PPLMODELS_CACHE"] = os.path.join(tempfile.gettempdir(), f"pplmodels-tests-{os.getpid()}")
ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "tools")]  # none of them is installed


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    assert not pyro.settings.get("module_local_params")


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def script():
    """The main function of a script, to call it inside the test's process."""
    return lambda name: runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device is available"))
