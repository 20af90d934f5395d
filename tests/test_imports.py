"""Imports go one way: the rooms of the package form no circle, and some of them know nothing of others."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("pplmodels", "guides") for path in (ROOT / package).rglob("*.py"))
SCRIPTS = {path.stem for path in (ROOT / "scripts").glob("*.py")}
LARGEST = 0.15  # of all lines, that a room may have
# room -> packages and rooms that it may not import
FORBIDDEN = {
    "nn": ("pyro",),
    "data": ("pyro",),
    "plotting": ("pyro", "torch", "pplmodels"),
    "models": ("pplmodels.infer", "pplmodels.training", "pplmodels.data"),
    "infer": ("pplmodels.models", "pplmodels.data", "pplmodels.training"),
    "metrics": ("pplmodels.models", "pplmodels.data", "pplmodels.training"),
    "inspect": ("pplmodels.models", "pplmodels.training"),
    "testing": ("pplmodels.models", "pplmodels.data", "pplmodels.training", "pplmodels.systems"),
    "training": ("pplmodels.models", "pplmodels.systems"),
    "systems": ("pplmodels.models",),
    "guides": ("pplmodels.training", "pplmodels.data", "pplmodels.systems", "guides.systems"),
}


def imported(path):
    """The dotted names that a file imports, those that are imported by name at run time included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                package = f"{parent(path, node.level)}.{node.module or ''}".strip(".") if node.level else node.module
                yield from (f"{package}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                yield node.args[0].value if isinstance(node.args[0], ast.Constant) else "a name that is computed"


def parent(path, level):
    """The package that a relative import of this level starts from."""
    return ".".join(path.relative_to(ROOT).parts[:-level])


def room(name):
    """The folder or single file of the package that a dotted name belongs to; None outside of the package."""
    top, *parts = name.split(".")
    if top == "guides":
        return "guides.systems" if parts[:1] == ["systems"] else "guides"
    if top != "pplmodels":
        return None
    place = ROOT / "pplmodels"
    while parts and (place / parts[0]).is_dir():
        place = place / parts.pop(0)
    if place == ROOT / "pplmodels" and parts and (place / f"{parts[0]}.py").exists():
        return parts[0]
    return ".".join(place.relative_to(ROOT / "pplmodels").parts) or "pplmodels"


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_rooms_form_no_circle():
    arrows = {}
    for path in SOURCES:
        here = room(module(path))
        arrows.setdefault(here, set()).update(room(name) for name in imported(path))
    for here, others in arrows.items():
        others -= {here, None}
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_no_room_knows_what_it_should_not(path):
    names = list(imported(path))
    here = room(module(path))
    here = here if here in FORBIDDEN or here.startswith("guides") else here.partition(".")[0]
    forbidden = (*FORBIDDEN.get(here, ()), *SCRIPTS, *([] if here.startswith("guides") else ["guides"]))
    found = [name for name in names if any(f"{name}.".startswith(f"{other}.") for other in forbidden)]
    assert not found
    assert here in ("training", "registry") or "a name that is computed" not in names


def test_no_room_is_much_larger_than_the_others():
    lines = {}
    for path in SOURCES:
        here = room(module(path))
        lines[here] = lines.get(here, 0) + len(path.read_text("utf-8").splitlines())
    assert max(lines.values()) < LARGEST * sum(lines.values())
