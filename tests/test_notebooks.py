"""The notebooks run from their first cell to their last."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.py"))
DRAWN = ("bounds.py", "draw.py")  # even shortened they take long: they are run whole, with the slow tests
HANGS = 900  # seconds after which a cell is taken to hang
# What a notebook trains for a minute, trained for a moment: every cell runs, and what it shows is not worth looking at.
SHORT = (
    (r"range\(\d{3,}\)", "range(20)"),
    (r"--steps \d+ --count-steps \d+ \d+ --eval-every \d+", "--steps 4 --count-steps 2 2 --eval-every 4"),
    ("compile=True", "compile=False"),
    (r"--train-scenes \d+ --test-scenes \d+", "--no-compile --train-scenes 400 --test-scenes 200"),
)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "short"),
    [
        *(pytest.param(name, True) for name in NAMES if name not in DRAWN),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in NAMES),
    ],
)
def test_a_notebook_runs(name, short):
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    text = (FOLDER / name).read_text()
    shortened = text
    for long, brief in SHORT:
        shortened = re.sub(long, brief, shortened)
    assert shortened != text
    notebook = jupytext.reads(shortened if short else text, fmt="py:percent")
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=HANGS, kernel_name="python3", resources=resources).execute()
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert pictures
