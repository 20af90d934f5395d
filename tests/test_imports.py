"""The layers import one way only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ("__init__", "defaults", "errors", "files", "generators", "machine", "messages", "plates", "plotting")
SHARED += ("pretrained", "ranks", "report", "sharing")
MODELS = sorted(f"pplmodels.{path.stem}" for path in (ROOT / "pplmodels").glob("*.py") if path.stem not in SHARED)
# folder or file -> what it may not import
FORBIDDEN = {
    "pplmodels/nn": ("pyro", "guides", "pplmodels.infer", "pplmodels.data", "pplmodels.training", *MODELS),
    "pplmodels/distributions": ("guides", "pplmodels.infer", "pplmodels.data", "pplmodels.training", *MODELS),
    "pplmodels/data": ("pyro", "guides", "pplmodels.infer", "pplmodels.training", *MODELS),
    "pplmodels/infer": ("guides", "pplmodels.data", "pplmodels.training", *MODELS),
    "pplmodels/training": ("guides", *MODELS),
    "pplmodels/inspect": ("guides", "pplmodels.training", *MODELS),
    "pplmodels/report.py": ("guides", "pplmodels.training", *MODELS),
    "pplmodels/plotting.py": ("guides", "pplmodels", "torch", "pyro"),
    "guides": ("pplmodels.infer", "pplmodels.training", "pplmodels.data"),
    **{name.replace(".", "/") + ".py": ("guides", "pplmodels.infer", "pplmodels.training") for name in MODELS},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("place", FORBIDDEN)
def test_imports_go_one_way(place):
    path = ROOT / place
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            for other in FORBIDDEN[place]:
                assert not f"{name}.".startswith(f"{other}."), f"{file.relative_to(ROOT)} imports {name}"
